"""The Triton kernels, through their launcher, as the PTX that Triton compiles, in the emulator, for four targets."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attempts import Attempt, bits
from support.cases import CASES
from support.float32_phases import ANGLES, CONFIG_NAMES, any_angles, near_and_far
from support.no_angles import NO_ANGLES

pytest.importorskip("triton")

from support import launches

from emulation.ptx.code import INSTRUCTIONS
from emulation.targets import TRITON as TARGETS
from emulation.triton_driver import emulated

WAYS = list(product(TARGETS, (False, True)))
"""(target, in place)"""
ON_ALL_TARGETS = [
    launches.BY_NAME[name]
    for name in (
        "interleaved-bfloat16-forward", "half-float32-inverse", "interleaved_to_half-float16-inverse",
        "packed-seq_len-longrope",
    )
]  # fmt: skip
everywhere = pytest.mark.parametrize("way", WAYS, ids=lambda way: name_of(way))
on_every_target = pytest.mark.parametrize("target", TARGETS, ids="sm_{}".format)


def way_of(number):
    """The next for each number, but not in step with the list of cases, which goes by fours."""
    return WAYS[(number + number // len(WAYS)) % len(WAYS)]


def name_of(way):
    return f"sm_{way[0]}-{'in_place' if way[1] else 'apart'}"


def covering(cases):
    """Every case in one way."""
    chosen = [(case, way_of(i)) for i, case in enumerate(cases)]
    return [pytest.param(case, way, id=f"{case}-{name_of(way)}") for case, way in chosen]


def run(case, way):
    target, in_place = way
    with emulated(target) as done:
        launches.run(case, in_place)
    assert len(done) == (0 if case.tokens == 0 or case.batch == 0 else 1)
    for launch in done:
        assert set(launch.counts.instructions) <= INSTRUCTIONS


@pytest.mark.parametrize(("case", "way"), covering(CASES))
def test_case(case, way):
    run(case, way)


@pytest.mark.parametrize(("case", "way"), covering(launches.MANY_TOKENS))
def test_many_tokens(case, way, many_tokens):
    run(case, way)


@everywhere
@pytest.mark.parametrize("case", ON_ALL_TARGETS, ids=str)
def test_every_way(case, way):
    run(case, way)


@on_every_target
@pytest.mark.parametrize("case", ON_ALL_TARGETS, ids=str)
def test_bits_do_not_depend_on_the_shape_of_the_launch(case, target, request):
    """A token rotates alike alone and among many: decode continues a prefill, and backward calls undo forward ones."""
    few, many = Attempt(case, in_place=False), Attempt(case, in_place=False)
    with emulated(target) as done:
        launches.rotate(few)
        request.getfixturevalue("many_tokens")
        launches.rotate(many)
    assert done[0].ptx != done[1].ptx
    for one, other in zip(few.outputs, many.outputs, strict=True):
        assert torch.equal(bits(one), bits(other))


@pytest.mark.full
@everywhere
@pytest.mark.parametrize("case", CASES, ids=str)
def test_product(case, way):
    run(case, way)


@pytest.mark.full
@pytest.mark.parametrize(("number", "target"), list(product(range(len(CASES)), TARGETS)))
def test_product_of_many_tokens(number, target, many_tokens):
    """Every case on every target, half of them in place."""
    run(CASES[number], (target, (number + TARGETS.index(target)) % 2 == 1))


@on_every_target
@pytest.mark.parametrize("tokens", [31, 64])
def test_full_and_partial_tiles_of_many_tokens(tokens, target, many_tokens):
    run(launches.tiles(tokens), (target, True))


@pytest.mark.parametrize(("dtype", "target"), list(zip(launches.POSITION_DTYPES, TARGETS, strict=True)))
def test_dtypes_of_positions(dtype, target):
    with emulated(target):
        launches.run_positions_of(dtype)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("call", "target"), [(call, TARGETS[i % 4]) for i, call in enumerate(NO_ANGLES)], ids=str)
def test_a_position_without_an_angle_gives_nan_to_the_pairs_it_rotates(call, target):
    with emulated(target):
        launches.rotate(call.attempt(target >= 100, Attempt))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:invalid value")
@on_every_target
@pytest.mark.parametrize("call", NO_ANGLES, ids=str)
def test_positions_without_an_angle_everywhere(call, target):
    test_a_position_without_an_angle_gives_nan_to_the_pairs_it_rotates(call, target)


@pytest.mark.parametrize(("dtype", "target"), [("bfloat16", 80), ("float16", 100)])
def test_table_dtype_rounds_cosines_and_sines(dtype, target):
    with emulated(target):
        launches.run_rounded(dtype)


@pytest.mark.parametrize(("number", "name"), list(enumerate(CONFIG_NAMES)))
def test_float32_phases_are_as_good_as_torchs(number, name):
    """Of integer and of fractional positions, in turn."""
    with emulated(way_of(number)[0]):
        near_and_far(name, number % 2 == 1).check(launches.rotated)


@given(ANGLES, st.sampled_from(TARGETS))
@settings(max_examples=10)
def test_float32_phases_of_any_angle_are_as_good_as_torchs(angles, target):
    with emulated(target):
        any_angles(angles).check(launches.rotated)


@on_every_target
def test_one_of_two_in_place(target):
    with emulated(target) as done:
        launches.run_one_of_two_in_place()
    assert len(done) == 2


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("name", "target"), list(zip(launches.COPYING, TARGETS, strict=True)))
def test_channels_that_are_not_rotated_are_copied_bit_by_bit(name, target):
    with emulated(target):
        launches.run_copying(name)


@pytest.mark.parametrize("target", [90])
def test_tensors_of_2_to_the_31_elements(target, tmp_path):
    with emulated(target):
        launches.run_far_apart(tmp_path)


@pytest.mark.parametrize(("table", "target"), [(table, TARGETS[i % 4]) for i, table in enumerate(launches.SOME_TABLES)])
def test_table(table, target):
    with emulated(target) as done:
        launches.run_table(*table)
    assert len(done) == 2


@pytest.mark.parametrize(("table", "target"), [(table, TARGETS[i % 4]) for i, table in enumerate(launches.CACHED)])
def test_rows_of_a_table(table, target):
    with emulated(target) as done:
        launches.run_cached(*table)
    assert len(done) == 4


@pytest.mark.full
@on_every_target
@pytest.mark.parametrize("table", launches.TABLES)
def test_product_of_tables(table, target):
    test_table(table, target)
