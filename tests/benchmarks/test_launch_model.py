"""Launch shapes by the model of benchmarks/rows/launch_model.py: no number of tokens is a cliff, on no GPU."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

pytest.importorskip("triton")

from benchmarks.rows.launch_model import MACHINES, Call, cuda_launch, predict, triton_launch
from emulation.cuda import build
from rope_kernels.backends.triton import plan

MOST_TOKENS = 65_536
CALLS = [
    Call(0), Call(0, 8, 1), Call(0, 64, 8), Call(0, 16, 16, 64), Call(0, 8, 1, 64), Call(0, 1, 0, 64),
    Call(0, 128, 1, 64, pairing="interleaved"), Call(0, 32, 8, 96), Call(0, 32, 8, 256, 4),
]  # fmt: skip
RISE = 1.002
"""A program may have room for tokens that are not there: up to this much more per token from one count to the next."""
LATE = 1.05
"""How much faster than before a call of more tokens may be, since its shape could have changed a little earlier."""

needs_nvcc = pytest.mark.skipif(build.nvcc() is None, reason="there is no nvcc, which compiles the CUDA launch plan")
everywhere = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)


def counts(steps):
    """Numbers of tokens: the first, those about powers of two, and ``steps`` more per power of two."""
    powers = [2**i for i in range(17)]
    found = {power + near for power in powers for near in (-1, 0, 1)}
    found |= {round(2 ** (i / steps)) for i in range(16 * steps + 1)}
    return sorted(count for count in found if 1 <= count <= MOST_TOKENS)


def check_no_cliff(call, launch_of, machine, steps):
    times = {n: predict(of, launch_of(of), machine) for n in counts(steps) for of in [replace(call, tokens=n)]}
    first = times[1].seconds
    for (few, earlier), (many, later) in pairwise(times.items()):
        assert later.seconds / many <= RISE * earlier.seconds / few, (few, many)
        assert later.seconds >= earlier.seconds / LATE, (few, many)
    for count, time in times.items():
        assert time.seconds <= 1.6 * max(first, time.memory), count


@everywhere
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_triton_has_no_cliff(call, machine):
    check_no_cliff(call, partial(triton_launch, multiprocessors=machine.multiprocessors), machine, 200)


@needs_nvcc
@everywhere
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_cuda_has_no_cliff(call, machine):
    check_no_cliff(call, partial(cuda_launch, multiprocessors=machine.multiprocessors), machine, 20)


@pytest.mark.parametrize("kilobytes", [4, 8])
def test_the_model_sees_a_cliff_where_too_little_is_in_flight(kilobytes, monkeypatch):
    monkeypatch.setattr(plan, "BYTES_IN_FLIGHT", kilobytes * 1024)
    plan.launch_tile.cache_clear()
    try:
        with pytest.raises(AssertionError):
            check_no_cliff(CALLS[0], partial(triton_launch, multiprocessors=132), MACHINES[0], 50)
    finally:
        plan.launch_tile.cache_clear()
