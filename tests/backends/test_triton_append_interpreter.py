"""The Triton kernel that stores in a KV cache, through its launcher, in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from support import append_launches as launches

from emulation.interpreter import interpreted
from rope_kernels.backends.triton import append_kernels, norm_kernels
from rope_kernels.backends.triton import kernels as rotate_kernels


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    kernels = norm_kernels.rotate_norm_kernel, rotate_kernels.rotate_kernel
    with interpreted(append_kernels.rotate_append_kernel, *kernels):
        yield


@pytest.mark.parametrize("call", launches.SOME[::3], ids=str)
def test_call(call):
    launches.run(call)


@pytest.mark.parametrize("call", launches.MANY_TOKENS[::4], ids=str)
def test_many_tokens(call, many_tokens):
    launches.run(call)


@pytest.mark.full
@pytest.mark.parametrize("call", launches.WITH_TOKENS, ids=str)
def test_every_call(call):
    launches.run(call)


def test_slots_past_the_cache_are_not_stored():
    launches.run_slots_past_the_cache()


def test_k_in_place():
    launches.run_k_in_place()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
def test_every_midpoint_is_rounded_to_even(dtype):
    launches.run_every_midpoint(dtype)
