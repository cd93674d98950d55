"""The emulated Triton driver: what it runs is what Triton would launch, and nothing of it stays."""

import contextlib

import pytest
import torch
from support import tolerances

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends import backends
from triton.runtime.driver import driver

from emulation.ptx import Program, PTXError
from emulation.targets import TRITON as TARGETS
from emulation.triton_driver import emulated


@triton.jit
def axpy(x_ptr, y_ptr, a, n, BLOCK: tl.constexpr, MASKED: tl.constexpr = True):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n if MASKED else at >= 0
    y = tl.load(y_ptr + at, mask=mask) + a * tl.load(x_ptr + at, mask=mask)
    tl.store(y_ptr + at, y, mask=mask)


@triton.jit
def all_to_one(x_ptr):
    tl.store(x_ptr + tl.arange(0, 64) * 0, tl.arange(0, 64))


@triton.jit
def transposed(x_ptr, y_ptr, N: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(y_ptr + row * N + column, tl.trans(tl.load(x_ptr + row * N + column)))


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_runs_as_ptx_of_the_target(target):
    x, y = torch.randn(1000), torch.randn(1000)
    wanted = torch.addcmul(y.double(), x.double(), torch.tensor(2.5, dtype=torch.float64))
    with emulated(target) as launches:
        axpy[(triton.cdiv(1000, 256),)](x, y, 2.5, 1000, BLOCK=256, num_warps=2)
    torch.testing.assert_close(y.double(), wanted, **tolerances.TWO_WAYS)
    (launch,) = launches
    assert launch.name == "axpy"
    assert launch.grid == (4, 1, 1)
    assert Program.parse(launch.ptx).target.startswith(f"sm_{target}")
    assert launch.counts.warp_instructions["ret"] == 4 * 2


def test_targets_do_not_share_compiled_kernels():
    x = torch.zeros(64)
    seen = []
    for target in (90, 80, 90):
        with emulated(target) as launches:
            axpy[(1,)](x, x.clone(), 1.0, 64, BLOCK=64, num_warps=2)
        seen.append(Program.parse(launches[0].ptx).target)
    assert seen == ["sm_90a", "sm_80", "sm_90a"]


def test_arguments_are_specialised():
    """An aligned pointer makes wide accesses, one that is not does not."""
    x, y = torch.randn(513), torch.randn(513)
    with emulated(90) as launches:
        for offset in (0, 1):
            a, b = x[offset : offset + 512], y[offset : offset + 512]
            wanted = a + b
            axpy[(2,)](a, b, 1.0, 512, BLOCK=256, num_warps=1)
            torch.testing.assert_close(b, wanted)
    assert [set(launch.counts.stores) for launch in launches] == [{16}, {4}]


def test_out_of_bounds():
    x, y = torch.randn(100), torch.randn(100)
    with emulated(90), pytest.raises(PTXError, match="out of bounds"):
        axpy[(1,)](x, y, 1.0, 100, BLOCK=128, MASKED=False)


def test_race():
    with emulated(90), pytest.raises(PTXError, match="race: write of what another thread writes"):
        all_to_one[(1,)](torch.zeros(1, dtype=torch.int32))


def test_shared_memory_is_refused():
    x = torch.randn(32, 32)
    with emulated(90), pytest.raises(PTXError, match=r"transposed wants \d+ bytes of shared memory"):
        transposed[(1,)](x, torch.empty_like(x), N=32)


def test_empty_grid_runs_nothing():
    x = torch.zeros(4)
    with emulated(90) as launches:
        axpy[(0,)](x, x, 1.0, 4, BLOCK=4)
    assert all(not launch.counts.instructions for launch in launches)


def test_everything_is_put_back():
    before, compilers = driver._active, dict(backends)
    with contextlib.suppress(PTXError), emulated(90):
        with emulated(80):
            assert driver.active.get_current_target().arch == 80
        assert driver.active.get_current_target().arch == 90
        raise PTXError
    assert driver._active is before
    assert backends == compilers
