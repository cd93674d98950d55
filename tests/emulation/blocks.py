"""How often threads came by each piece of a kernel, from an emulator that counts instructions by name.

In front of every straight piece of code goes an instruction that the kernel does not have otherwise, each time another
one, whose result nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from emulation.ptx import Counts
from emulation.ptx.execute import COMPUTING
from emulation.ptx.syntax import Immediate, Kernel, Register, Statement

__all__ = ["Piece", "pieces"]

_ENDS = ("bra", "ret", "exit", "bar", "barrier")
_INTEGERS = ("16", "32", "64")


@dataclass(frozen=True)
class Piece:
    """Statements that are executed one after the other, and how many threads came by, guards aside."""

    statements: range
    threads: int


def _firsts(kernel: Kernel) -> list[int]:
    """Statements that a straight piece of code begins with."""
    after = [i + 1 for i, statement in enumerate(kernel.statements) if statement.opcode in _ENDS]
    return sorted(i for i in {0, *kernel.labels.values(), *after} if i < len(kernel.statements))


def _markers(kernel: Kernel) -> list[Statement]:
    known = {statement.name for statement in kernel.statements}
    markers = []
    for name, semantics in COMPUTING.items():
        integers = all(type_[0] != "f" and type_.endswith(_INTEGERS) for type_ in semantics.operands)
        if integers and len(semantics.operands) == 2 and name not in known:
            result = Register(kernel.num_registers + len(markers), semantics.result, "%marker")
            markers.append(Statement(name, name, (result, Immediate(1), Immediate(1))))
    return markers


def _marked(kernel: Kernel, markers: dict[int, Statement]) -> Kernel:
    """The kernel with markers in front of the statements with these numbers."""
    before = [sum(first < i for first in markers) for i in range(len(kernel.statements) + 1)]
    statements: list[Statement] = []
    for i, statement in enumerate(kernel.statements):
        statements += [markers[i], statement] if i in markers else [statement]
    labels = {name: place + before[place] for name, place in kernel.labels.items()}
    return replace(
        kernel, statements=tuple(statements), labels=labels, num_registers=kernel.num_registers + len(markers)
    )


def pieces(kernel: Kernel, launch: Callable[[Kernel], Counts]) -> list[Piece]:
    """The straight pieces of ``kernel``, in order, and how many threads came by each.

    ``launch`` runs the kernel that it is given, which computes the same as ``kernel``; perhaps more than once.
    """
    firsts, markers = _firsts(kernel), _markers(kernel)
    found: list[int] = []
    while len(found) < len(firsts):
        some = dict(zip(firsts[len(found) :], markers, strict=False))
        counts = launch(_marked(kernel, some))
        found += [counts.instructions[marker.name] for marker in some.values()]
    ends = [*firsts[1:], len(kernel.statements)]
    return [Piece(range(*ends_), threads) for *ends_, threads in zip(firsts, ends, found, strict=True)]
