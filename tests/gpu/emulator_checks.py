"""The device beside the emulator, case by case: the same PTX there and here.

Bit by bit where :mod:`gpu.determined` finds that the PTX leaves nothing open, else within twice the bound of
``tests/cases.py``, since either side may be off by it. Which it was is the note of a check that passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from support.attempts import Attempt, bits
from support.cases import CASES, Case, bound, make
from support.launches import launch
from torch import Tensor

from emulation.ptx import Counts, Program
from emulation.ptx.syntax import Kernel
from emulation.targets import TRITON as TRITON_TARGETS

from .determined import is_determined
from .outcomes import Check, NotHereError, Setup
from .placing import Placed

__all__ = ["BITWISE", "WITHIN", "Emulated", "agree", "emulator_checks", "native_emulated", "nearest", "triton_emulated"]

BITWISE, WITHIN = "bitwise", "within tolerance"


@dataclass(frozen=True)
class Emulated:
    """The results of a case, and whether its PTX determines them on every device."""

    results: list[Tensor]
    determined: bool


def nearest(capability: int, targets: Sequence[int]) -> int:
    """The last of ``targets`` whose PTX a device of this capability (90 for 9.0) runs.

    Raises:
        NotHereError: there is none.
    """
    fitting = [target for target in targets if target <= capability]
    if not fitting:
        raise NotHereError(f"nothing is emulated for sm_{capability}; the oldest is sm_{min(targets)}")
    return max(fitting)


def _is_determined(kernel: Kernel, counts: Counts | None) -> bool:
    """By the statements that the launch came by, not by what else the kernel holds."""
    assert counts is not None
    came_by = tuple(s for s, threads in zip(kernel.statements, counts.statements, strict=True) if threads)
    return is_determined(replace(kernel, statements=came_by), counts.instructions)


def triton_emulated(case: Case, in_place: bool, capability: int) -> Emulated:
    """By the PTX that Triton compiles."""
    from emulation.triton_driver import emulated

    attempt = Attempt(case, in_place)
    with emulated(nearest(capability, TRITON_TARGETS)) as done:
        if any(x.numel() for x in attempt.inputs):
            launch(case, attempt.made, [*attempt.outputs, None][:2], given=attempt.arguments)
    ran = [_is_determined(Program.parse(one.ptx).kernels[one.name], one.counts) for one in done]
    return Emulated(attempt.outputs, all(ran))


def native_emulated(case: Case, in_place: bool, capability: int) -> Emulated:
    """By the PTX that nvcc makes of the CUDA kernels, through the launcher that the extension has."""
    from emulation.cuda import build

    if build.nvcc() is None:
        raise NotHereError("there is no nvcc, which makes PTX of the CUDA kernels")
    from emulation.cuda.calls import CudaAttempt
    from emulation.cuda.emulated import launcher

    cuda, target = launcher(), nearest(capability, build.TARGETS)
    attempt = CudaAttempt(case, in_place)
    error = cuda.launch(attempt.call, target)
    assert error is None, f"in the emulator: {error}: {cuda.errors}"
    kernels = cuda.programs[target].kernels
    ran = [_is_determined(kernels[one.kernel], one.counts) for one in cuda.launches]
    return Emulated(attempt.outputs, all(ran))


EMULATORS: dict[str, Callable[[Case, bool, int], Emulated]] = {"triton": triton_emulated, "native": native_emulated}


def agree(case: Case, results: list[Tensor], emulated: Emulated) -> str:
    """Assert that ``results`` are the emulator's; BITWISE or WITHIN, as far as the PTX determines them."""
    made = make(case)
    for x, got, wanted in zip((made.q, made.k), results, emulated.results, strict=False):
        if x is None:
            continue
        different = bits(got) != bits(wanted)
        distance = (got.double() - wanted.double()).abs()
        worst = distance.max().item() if got.numel() else 0.0
        what = f"{int(different.sum())} of {got.numel()} differ, by up to {worst:.3e}"
        if emulated.determined:
            assert not different.any(), what
        near = distance <= 2 * bound(case, x, wanted.double())
        assert near.all(), what
    return BITWISE if emulated.determined else WITHIN


def _compared(case: Case, in_place: bool, backend: str, device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    emulated = EMULATORS[backend](case, in_place, 10 * major + minor)
    return agree(case, Placed(case, device, in_place).rotate(backend), emulated)


def emulator_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """Every case, out of place and in place."""
    for case in CASES:
        for way, in_place in (("apart", False), ("in place", True)):
            run = partial(_compared, case, in_place, backend, setup.device)
            yield Check(f"emulator/{backend}/{way}/{case}", run)
