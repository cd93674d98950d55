"""A kernel's statements bound to what executes them, and where straight pieces of code end."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from .errors import PTXError
from .execute import ACCESSES, COMPUTING, EXCHANGES, MOVES, Execute, executing
from .operands import Reader, reader
from .syntax import Kernel, Statement, Symbol

__all__ = ["BARRIERS", "BRANCHES", "EXITS", "INSTRUCTIONS", "Code", "Step", "code_of"]

BRANCHES = ("bra", "bra.uni")
EXITS = ("ret", "exit")
BARRIERS = ("bar.sync",)
INSTRUCTIONS = frozenset({*COMPUTING, *MOVES, *ACCESSES, *EXCHANGES, *BRANCHES, *EXITS, *BARRIERS})
"""Names of all that can be executed. Every one has a test."""
_known: WeakKeyDictionary[Kernel, Code] = WeakKeyDictionary()


@dataclass(frozen=True)
class Step:
    """A statement: the condition in front of it, and what it does or where it leads."""

    statement: Statement
    guard: Reader | None = None
    execute: Execute | None = None
    target: int | None = None


@dataclass(frozen=True)
class Code:
    """Steps; and per step, where the straight piece of code ends that goes on there.

    Attributes:
        steps: one per statement.
        ends: the first step from here on that is a branch, an exit or a barrier, or after here, is branched to.
        meetings: the steps that are branched to.
    """

    steps: tuple[Step, ...]
    ends: tuple[int, ...]
    meetings: frozenset[int]


def code_of(kernel: Kernel) -> Code:
    """Bind a kernel's statements, once.

    Raises:
        PTXError: a statement is not known; the message has it.
    """
    if kernel not in _known:
        with _without_collection():
            steps = tuple(_step(statement, kernel) for statement in kernel.statements)
        ends = list(range(1, len(steps) + 1))
        meetings = frozenset(kernel.labels.values())
        for place in reversed(range(len(steps))):
            if steps[place].execute is None:
                ends[place] = place
            elif place + 1 < len(steps) and place + 1 not in meetings:
                ends[place] = ends[place + 1]
        _known[kernel] = Code(steps, tuple(ends), meetings)
    return _known[kernel]


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Many small objects that all stay: looking for garbage among them would take ten times as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _step(statement: Statement, kernel: Kernel) -> Step:
    try:
        guard = _guard(statement)
        if statement.name in BRANCHES:
            return Step(statement, guard, target=_target(statement, kernel))
        if statement.name in EXITS:
            return Step(statement, guard)
        if statement.name in BARRIERS:
            _check_barrier(statement)
            return Step(statement)
        return Step(statement, guard, executing(statement, kernel))
    except PTXError as error:
        raise PTXError(f"{kernel.name}: {statement.text}: {error}") from error


def _guard(statement: Statement) -> Reader | None:
    if statement.guard is None:
        return None
    read = reader(statement.guard, "pred")
    return (lambda machine, lanes: np.invert(read(machine, lanes))) if statement.negated else read


def _target(statement: Statement, kernel: Kernel) -> int:
    (label,) = statement.operands
    if not isinstance(label, Symbol) or label.name not in kernel.labels:
        raise PTXError(f"unknown label {label}")
    return kernel.labels[label.name]


def _check_barrier(statement: Statement) -> None:
    """Only the barrier that all threads of a CTA take part in."""
    if statement.guard is not None or [getattr(o, "value", None) for o in statement.operands] != [0]:
        raise PTXError("unknown form of a barrier")
