"""What a PTX text consists of once it is parsed: statements and their operands."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "Address", "Immediate", "Kernel", "Operand", "Parameter", "Register", "Sink", "Special", "Statement", "Symbol",
    "ValueAndPredicate", "Vector",
]  # fmt: skip


@dataclass(frozen=True)
class Register:
    """A virtual register: its number in the kernel, its declared type, its name for messages."""

    slot: int
    type: str
    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer of any width, or the bits of a floating one of ``width`` bytes."""

    value: int
    width: int = 0


@dataclass(frozen=True)
class Special:
    """A special register, such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A parameter, a shared variable or a label."""

    name: str


@dataclass(frozen=True)
class Sink:
    """``_``: a result that nobody wants."""


@dataclass(frozen=True)
class Vector:
    """``{a, b}``"""

    parts: tuple[Register | Immediate | Sink, ...]


@dataclass(frozen=True)
class ValueAndPredicate:
    """``a|p``: two results of one instruction."""

    value: Register
    predicate: Register


@dataclass(frozen=True)
class Address:
    """``[base + offset]``"""

    base: Register | Symbol | Immediate
    offset: int


Operand = Register | Immediate | Special | Symbol | Sink | Vector | Address | ValueAndPredicate


@dataclass(frozen=True)
class Statement:
    """One instruction.

    Attributes:
        text: as written.
        name: the instruction with all its modifiers, such as ``fma.rn.f32``.
        guard: the predicate in front of it, and whether it is negated.
        operands: results first.
    """

    text: str
    name: str
    operands: tuple[Operand, ...]
    guard: Register | None = None
    negated: bool = False

    @property
    def opcode(self) -> str:
        """The instruction without its modifiers."""
        return self.name.split(".", 1)[0]


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: its place in the block of all parameters, in bytes, and its type (bytes for a struct)."""

    name: str
    offset: int
    size: int
    type: str


@dataclass(frozen=True, eq=False)
class Kernel:
    """An ``.entry``.

    Attributes:
        name: as mangled.
        target: what it was compiled for, such as ``sm_90a``.
        parameters: in the order of arguments.
        statements: its body.
        labels: statement numbers of the labels that are branched to.
        num_registers: registers of all types.
        shared: offsets of its shared variables.
        shared_bytes: bytes of those whose size is known.
        required_threads, most_threads: limits on the threads of a block, or ``None``.
    """

    name: str
    target: str
    parameters: tuple[Parameter, ...]
    statements: tuple[Statement, ...]
    labels: dict[str, int]
    num_registers: int
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    required_threads: int | None = None
    most_threads: int | None = None
