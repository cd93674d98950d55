"""The Triton kernels, through their launcher, in Triton's interpreter: every case, and what only these kernels have."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from support.attempts import Attempt
from support.calls import arguments, inputs, operation
from support.cases import CASES, Case, make
from support.float32_phases import ANGLES, SOME_NAMES, any_angles, near_and_far
from support.no_angles import NO_ANGLES

pytest.importorskip("triton")

from support import launches

from emulation.interpreter import interpreted
from rope_kernels.backends.triton import kernels as triton_kernels
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.rotation import Rotation


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreted(triton_kernels.rotate_kernel, triton_kernels.rotate_table_kernel):
        yield


def covering(cases):
    """Every case either out of place or in place; not in step with the list of cases, which goes by fours."""
    ways = [(case, (i + i // 4) % 2 == 1) for i, case in enumerate(cases)]
    return [pytest.param(*way, id=f"{way[0]}-{'in_place' if way[1] else 'apart'}") for way in ways]


both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])


@pytest.mark.parametrize(("case", "in_place"), covering(CASES))
def test_case(case, in_place):
    launches.run(case, in_place)


@pytest.mark.parametrize(("case", "in_place"), covering(launches.MANY_TOKENS))
def test_many_tokens(case, in_place, many_tokens):
    launches.run(case, in_place)


@pytest.mark.full
@both_ways
@pytest.mark.parametrize("case", CASES, ids=str)
def test_product(case, in_place):
    launches.run(case, in_place)


@pytest.mark.full
@both_ways
@pytest.mark.parametrize("case", launches.MANY_TOKENS, ids=str)
def test_product_of_many_tokens(case, in_place, many_tokens):
    launches.run(case, in_place)


@pytest.mark.parametrize("tokens", [31, 64])
def test_full_and_partial_tiles_of_many_tokens(tokens, many_tokens):
    launches.run(launches.tiles(tokens), in_place=True)


@pytest.mark.parametrize("dtype", launches.POSITION_DTYPES)
def test_dtypes_of_positions(dtype):
    launches.run_positions_of(dtype)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("call", "in_place"), covering(NO_ANGLES))
def test_a_position_without_an_angle_gives_nan_to_the_pairs_it_rotates(call, in_place):
    launches.rotate(call.attempt(in_place, Attempt))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:invalid value")
@both_ways
@pytest.mark.parametrize("call", NO_ANGLES, ids=str)
def test_positions_without_an_angle_both_ways(call, in_place):
    launches.rotate(call.attempt(in_place, Attempt))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_table_dtype_rounds_cosines_and_sines(dtype):
    launches.run_rounded(dtype)


@pytest.mark.parametrize("name", SOME_NAMES)
def test_float32_phases_are_as_good_as_torchs(name):
    near_and_far(name, floating=True).check(launches.rotated)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@given(ANGLES)
@settings(max_examples=5)
def test_float32_phases_of_any_angle_are_as_good_as_torchs(angles):
    any_angles(angles).check(launches.rotated)


def test_frequencies_past_the_rotated_ones_are_zero():
    launches.run_rotated()


def test_one_of_two_in_place():
    launches.run_one_of_two_in_place()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", launches.COPYING)
def test_channels_that_are_not_rotated_are_copied_bit_by_bit(name):
    launches.run_copying(name)


def test_no_pairs_at_all_is_a_copy():
    case = launches.BY_NAME["default-near"]
    made = make(case)
    spec = dataclasses.replace(operation(case, made).spec, rotation=Rotation(64, 0, 32))
    out = torch.empty_like(made.q), torch.empty_like(made.k)
    triton_launch.rotate(made.q, made.k, *out, inputs(arguments(case, made)), spec)
    assert torch.equal(out[0], made.q)
    assert torch.equal(out[1], made.k)


def test_tensors_of_2_to_the_31_elements(tmp_path):
    launches.run_far_apart(tmp_path)


@pytest.mark.parametrize("table", launches.SOME_TABLES)
def test_table(table):
    launches.run_table(*table)


@pytest.mark.parametrize("table", launches.CACHED[::2])
def test_rows_of_a_table(table):
    launches.run_cached(*table)


@pytest.mark.full
@pytest.mark.parametrize("table", launches.TABLES)
def test_product_of_tables(table):
    launches.run_table(*table)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("head_dim", [1028, 4096])
def test_long_heads(head_dim, pairing):
    """Ladders of more than 512 frequencies, whose powers are made in the kernel from the ninth on."""
    fields = dict(head_dim=head_dim, pairing=pairing, rope_theta=1e6)
    launches.run(Case(f"long{head_dim}", fields, q_heads=1, k_heads=1, tokens=1, batch=1, start=77), in_place=False)
