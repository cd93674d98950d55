"""Python's threads and calls past the dispatcher: they run on meanwhile, and may call at once."""

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from support.attempts import bits
from support.calls import is_public, rotate
from support.cases import CASES, make
from support.direct_calls import NO_LENGTHS

import rope_kernels as rk
from rope_kernels.backends import native
from rope_kernels.ops import direct, operators

CONFIG = rk.RopeConfig(head_dim=128)
TOKENS = 16384


def long_calls():
    """Calls that take tens of milliseconds by the slowest kernel, in which any system finds time for a thread."""
    q, k = (torch.randn(1, TOKENS, heads, 128).half() for heads in (8, 2))
    out, positions = (torch.empty_like(q), torch.empty_like(k)), torch.arange(TOKENS)
    usual = q, k, positions, *NO_LENGTHS, CONFIG.spec()
    cos, sin = torch.randn(2, 1, TOKENS, 128).half()
    return {
        "in place": lambda: direct.rotate_(*usual),
        "out": lambda: direct.rotate_out(*usual, *out),
        "allocating": lambda: direct.rotate(*usual),
        "table": lambda: direct.rotate_table(q, k, cos, sin, 2, "half", False),
        "operator": lambda: operators.rotate(q, k, positions, None, None, None, None, CONFIG.spec()),
    }


@pytest.fixture
def clock():
    """When another thread of Python was running, as a list that grows; it asks for the interpreter all the time.

    Which kernels run is up to the machine again afterwards.
    """
    times, ends = [], threading.Event()

    def run():
        while not ends.is_set():
            times.append(time.perf_counter())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=run)
    thread.start()
    yield times
    ends.set()
    thread.join()
    sys.setswitchinterval(interval)
    native.force_isa("")


def ran_meanwhile(call, times):
    """Whether the other thread was never still for as much as half of the call's time on a core.

    While the interpreter is held, it stands still for all of it, however the system shares out its cores.
    """
    times.clear()
    start, begun = time.perf_counter(), time.thread_time()
    assert call() is not None
    spent, end = time.thread_time() - begun, time.perf_counter()
    seen = [start, *(t for t in times.copy() if start < t < end), end]
    return max(after - before for before, after in pairwise(seen)) < spent / 2


@pytest.mark.parametrize("name", ["in place", "out", "allocating", "table", "operator"])
def test_other_threads_run_during_a_call(name, clock):
    """A busy machine may have no core for the other thread during some of the calls, never during all of them."""
    call = long_calls()[name]
    native.force_isa("portable")
    assert any(ran_meanwhile(call, clock) for _ in range(50))


def test_a_call_that_holds_the_interpreter_is_noticed(clock):
    """Whether the test above can fail."""
    held = list(range(1_000_000))
    assert not any(ran_meanwhile(held.copy, clock) for _ in range(20))


def test_threads_that_call_at_once_get_the_bits_of_one():
    """Every thread has all the cases, in an order of its own, so that plans and scratch memory change hands."""
    cases = [case for case in CASES if is_public(case)]
    wanted = [rotate(case, make(case)) for case in cases]

    def run(seed):
        numbers = list(range(len(cases)))
        random.Random(seed).shuffle(numbers)
        for i in numbers:
            for got, want in zip(rotate(cases[i], make(cases[i])), wanted[i], strict=True):
                assert (got is None) == (want is None), cases[i]
                assert got is None or torch.equal(bits(got), bits(want)), cases[i]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))


def test_long_calls_overlap():
    """Of other frequencies, sizes and layouts each, so that what one thread computes is wrong for every other."""
    q = torch.randn(1, 1000, 2, 128)
    configs = [rk.RopeConfig(head_dim=128, rope_theta=theta, partial_rotary_factor=dim / 128)
               for theta, dim in ((1e4, 128), (1e6, 96), (5e5, 64), (3.0, 32))]  # fmt: skip
    layouts = ("bshd", "bhsd") * 2
    wanted = [rk.apply_rope(q.transpose(1, 2) if layout == "bhsd" else q, None, torch.arange(1000), config,
                            layout=layout)[0] for config, layout in zip(configs, layouts, strict=True)]  # fmt: skip
    begin = threading.Barrier(len(configs))

    def run(i):
        mine = q.transpose(1, 2).contiguous() if layouts[i] == "bhsd" else q
        for _ in range(100):
            begin.wait()
            assert torch.equal(
                rk.apply_rope(mine, None, torch.arange(1000), configs[i], layout=layouts[i])[0], wanted[i]
            )

    with ThreadPoolExecutor(len(configs)) as threads:
        list(threads.map(run, range(len(configs))))


def test_threads_may_rotate_parts_of_one_tensor():
    q, positions = torch.randn(1, 64, 8, 128), torch.arange(64)
    wanted = rk.apply_rope(q, None, positions, CONFIG)[0]

    def run(head):
        rk.apply_rope_(q[:, :, head : head + 1], None, positions, CONFIG)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, range(8)))
    assert torch.equal(q, wanted)
