"""The Triton kernels that norm and rotate, through their launcher, in Triton's interpreter."""

import pytest
from support import normed

pytest.importorskip("triton")

from support import normed_launches as launches

from emulation.interpreter import interpreted
from rope_kernels.backends.triton import kernels as rotate_kernels
from rope_kernels.backends.triton import norm_backward_kernels, norm_kernels


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    kernels = norm_backward_kernels.rotate_norm_backward_kernel, rotate_kernels.rotate_kernel
    with interpreted(norm_kernels.rotate_norm_kernel, *kernels):
        yield


def covering(calls):
    """Every call either out of place or in place."""
    ways = [(call, (i + i // 4) % 2 == 1) for i, call in enumerate(calls)]
    return [pytest.param(*way, id=f"{way[0]}-{'in_place' if way[1] else 'apart'}") for way in ways]


@pytest.mark.parametrize(("call", "in_place"), covering(launches.SHORT))
def test_call(call, in_place):
    launches.run(call, in_place)


@pytest.mark.parametrize(("call", "in_place"), covering(launches.MANY_TOKENS[::4]))
def test_many_tokens(call, in_place, many_tokens):
    launches.run(call, in_place)


@pytest.mark.full
@pytest.mark.parametrize(("call", "in_place"), covering(normed.CALLS))
def test_every_call(call, in_place):
    launches.run(call, in_place)


@pytest.mark.parametrize("call", launches.WITH_TOKENS[::12], ids=str)
def test_backward(call):
    launches.run_backward(call)


@pytest.mark.parametrize("call", launches.MANY_TOKENS[::9], ids=str)
def test_backward_of_many_tokens(call, many_tokens):
    launches.run_backward(call)


@pytest.mark.parametrize("kind", normed.NORMS[:2], ids=str)
def test_backward_of_hard_rows(kind):
    launches.run_backward_of_hard_rows(kind)


def test_one_of_two_in_place():
    launches.run_one_of_two_in_place()


def test_tokens_past_all_sequences_are_copied():
    launches.run_tail()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", launches.HARD_ROWS, ids=str)
def test_hard_rows(dtype):
    launches.run_hard_rows(dtype)
