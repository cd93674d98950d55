"""The Triton kernels that norm and rotate, through their launcher, as compiled PTX in the emulator."""

from itertools import product

import pytest
import torch
from support import normed
from support.attempts import bits

pytest.importorskip("triton")

from support import normed_launches as launches

from emulation.ptx.code import INSTRUCTIONS
from emulation.targets import TRITON as TARGETS
from emulation.triton_driver import emulated

WAYS = list(product(TARGETS, (False, True)))
"""(target, in place)"""
on_every_target = pytest.mark.parametrize("target", TARGETS, ids="sm_{}".format)


def covering(calls):
    """Every call in one way; not in step with the list of calls, which goes by fours."""
    chosen = [(call, WAYS[(i + i // len(WAYS)) % len(WAYS)]) for i, call in enumerate(calls)]
    return [
        pytest.param(call, way, id=f"{call}-sm_{way[0]}-{'in_place' if way[1] else 'apart'}") for call, way in chosen
    ]


def run(call, way):
    """The driver refuses shared memory: a row stays within a warp."""
    target, in_place = way
    with emulated(target) as done:
        launches.run(call, in_place)
    assert len(done) == (0 if call.case.tokens == 0 or call.case.batch == 0 else 1)
    for launch in done:
        assert set(launch.counts.instructions) <= INSTRUCTIONS


@pytest.mark.parametrize(("call", "way"), covering(normed.CALLS))
def test_call(call, way):
    run(call, way)


@pytest.mark.parametrize(("call", "way"), covering(launches.MANY_TOKENS))
def test_many_tokens(call, way, many_tokens):
    run(call, way)


@pytest.mark.full
@pytest.mark.parametrize(("call", "way"), covering(normed.EVERY_CALL))
def test_every_call(call, way):
    run(call, way)


@pytest.mark.full
@pytest.mark.parametrize(("call", "way"), covering(normed.EVERY_CALL))
def test_every_call_of_many_tokens(call, way, many_tokens):
    run(call, way)


@pytest.mark.parametrize(("call", "target"), [(c, TARGETS[i % 4]) for i, c in enumerate(launches.ALONE)], ids=str)
def test_bits_do_not_depend_on_the_shape_of_the_launch(call, target, request):
    few, many = (launches.NormedAttempt(call, in_place=False) for _ in range(2))
    with emulated(target) as done:
        few.make()
        request.getfixturevalue("many_tokens")
        many.make()
    if not str(call).startswith("head_dim512"):  # such a row fills a warp: its launches have one shape
        assert done[0].ptx != done[1].ptx
    for one, other in zip(few.outputs, many.outputs, strict=True):
        assert torch.equal(bits(one), bits(other))


@pytest.mark.parametrize(("call", "target"), [(c, TARGETS[i % 4]) for i, c in enumerate(launches.ALONE)], ids=str)
def test_bits_do_not_depend_on_other_tokens(call, target):
    with emulated(target):
        launches.run_alone(call)


def run_backward(call, target):
    with emulated(target) as done:
        launches.run_backward(call)
    for launch in done:
        assert set(launch.counts.instructions) <= INSTRUCTIONS


def on_targets(calls):
    """Each on one."""
    return [pytest.param(call, TARGETS[i % 4], id=f"{call}-sm_{TARGETS[i % 4]}") for i, call in enumerate(calls)]


@pytest.mark.parametrize(("call", "target"), on_targets(launches.WITH_TOKENS[::3]))
def test_backward(call, target):
    run_backward(call, target)


@pytest.mark.parametrize(("call", "target"), on_targets(launches.MANY_TOKENS[::2]))
def test_backward_of_many_tokens(call, target, many_tokens):
    run_backward(call, target)


@pytest.mark.full
@pytest.mark.parametrize(("call", "target"), on_targets(launches.WITH_TOKENS))
def test_backward_of_every_call(call, target):
    run_backward(call, target)


@pytest.mark.parametrize(("kind", "target"), list(zip(normed.NORMS[:2], TARGETS[::3], strict=True)), ids=str)
def test_backward_of_hard_rows(kind, target):
    with emulated(target):
        launches.run_backward_of_hard_rows(kind)


@pytest.mark.parametrize("target", [90])
def test_backward_of_one(target):
    with emulated(target):
        launches.run_backward_of_one()


@on_every_target
def test_one_of_two_in_place(target):
    with emulated(target) as done:
        launches.run_one_of_two_in_place()
    assert len(done) == 2


@pytest.mark.parametrize("target", [80, 120])
def test_tokens_past_all_sequences_are_copied(target):
    with emulated(target):
        launches.run_tail()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("dtype", "target"), list(zip(launches.HARD_ROWS, TARGETS[1:], strict=True)), ids=str)
def test_hard_rows(dtype, target):
    with emulated(target):
        launches.run_hard_rows(dtype)


def test_another_weight_of_the_same_kind_is_not_compiled_again():
    """Nor is another eps: they are arguments."""
    call = launches.ALONE[0]
    with emulated(90) as done:
        for factor in (1.0, 3.0):
            attempt = launches.NormedAttempt(call, in_place=False)
            for weight in attempt.weights.values():
                weight *= factor
            attempt.make()
    assert done[0].ptx == done[1].ptx
