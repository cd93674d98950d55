"""A launch: arguments, grid, and machines for some CTAs after another."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from .code import code_of
from .counts import Counts
from .errors import PTXError
from .machine import Grid, Machine
from .memory import Memory
from .schedule import Schedule
from .syntax import Kernel, Parameter
from .watch import Watch

__all__ = ["Argument", "run"]

Argument = int | float | bytes | np.ndarray
_LANES = 1 << 13
"""Threads at a time: so many that numpy's calls cost little, so few that registers stay in a cache."""
_FLOATS = {"f32": "<f", "f64": "<d"}


def run(
    kernel: Kernel, grid: Sequence[int], block: Sequence[int], args: Sequence[Argument], memory: Memory,
    shared_bytes: int = 0, steps: int = 1_000_000,
) -> Counts:  # fmt: skip
    """Run ``kernel`` and check all it does.

    Args:
        kernel: of a :class:`~.parse.Program`.
        grid: CTAs, up to three sizes.
        block: threads of a CTA, the same.
        args: one per parameter; bytes, or an array of uint8, for a struct.
        memory: all that global memory holds.
        shared_bytes: shared memory that a CTA may use.
        steps: instructions that some CTAs may take together, each counted once for all their threads.

    Raises:
        PTXError: an unknown instruction; an access that is out of bounds, misaligned or races; a register read before
            it is written; threads that wait for ever; more than ``steps``; arguments or a block that do not fit.
    """
    shape = Grid(_size(grid), _size(block))
    _check(kernel, shape, args, shared_bytes)
    code, watch, counts = code_of(kernel), Watch(memory, shape.threads), Counts()
    threads, warps = (np.zeros(len(code.steps), np.int64) for _ in range(2))
    parameters = _parameters(kernel.parameters, args)
    together = max(1, _LANES // max(shape.threads, 1))
    with np.errstate(all="ignore"):
        for first in range(0, shape.ctas, together):
            ctas = min(together, shape.ctas - first)
            machine = Machine(kernel, shape, first, ctas, parameters, watch, shared_bytes, counts)
            schedule = Schedule(machine, code, steps)
            schedule.run()
            threads += schedule.threads
            warps += schedule.warps
    counts.add_statements([statement.name for statement in kernel.statements], threads.tolist(), warps.tolist())
    return counts


def _size(given: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


def _check(kernel: Kernel, grid: Grid, args: Sequence[Argument], shared_bytes: int) -> None:
    if len(args) != len(kernel.parameters):
        raise PTXError(f"{kernel.name}: {len(args)} arguments for {len(kernel.parameters)} parameters")
    if grid.threads != (kernel.required_threads or grid.threads):
        raise PTXError(f"{kernel.name}: {grid.threads} threads, not the {kernel.required_threads} required")
    if grid.threads > (kernel.most_threads or grid.threads):
        raise PTXError(f"{kernel.name}: {grid.threads} threads, more than the {kernel.most_threads} allowed")
    if kernel.shared_bytes > shared_bytes:
        raise PTXError(f"{kernel.name}: {kernel.shared_bytes} bytes of shared memory, more than {shared_bytes}")


def _parameters(parameters: Sequence[Parameter], args: Sequence[Argument]) -> np.ndarray:
    """The block of all parameters, padded to the widest access."""
    end = max((p.offset + p.size for p in parameters), default=0)
    block = np.zeros(end, np.uint8)
    for parameter, value in zip(parameters, args, strict=True):
        block[parameter.offset : parameter.offset + parameter.size] = _bytes(parameter, value)
    return block


def _bytes(parameter: Parameter, value: Argument) -> np.ndarray:
    if isinstance(value, bytes | np.ndarray):
        raw = np.frombuffer(value, np.uint8)
        if raw.size != parameter.size:
            raise PTXError(f"{parameter.name}: {raw.size} bytes, not {parameter.size}")
        return raw
    if parameter.type in _FLOATS:
        return np.frombuffer(struct.pack(_FLOATS[parameter.type], value), np.uint8)
    bits = int(value) & ((1 << 8 * parameter.size) - 1)
    return np.frombuffer(bits.to_bytes(parameter.size, "little"), np.uint8)
