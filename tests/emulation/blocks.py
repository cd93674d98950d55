"""How often threads came by each straight piece of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from emulation.ptx import Counts
from emulation.ptx.syntax import Kernel

__all__ = ["Piece", "pieces"]

_ENDS = ("bra", "ret", "exit", "bar", "barrier")


@dataclass(frozen=True)
class Piece:
    """Statements that are executed one after the other, and how many threads came by, guards aside."""

    statements: range
    threads: int


def pieces(kernel: Kernel, counts: Counts) -> list[Piece]:
    """The straight pieces of ``kernel``, in order, by the counts of a launch of it."""
    after = [i + 1 for i, statement in enumerate(kernel.statements) if statement.opcode in _ENDS]
    firsts = sorted(i for i in {0, *kernel.labels.values(), *after} if i < len(kernel.statements))
    ends = [*firsts[1:], len(kernel.statements)]
    return [Piece(range(first, end), counts.statements[first]) for first, end in zip(firsts, ends, strict=True)]
