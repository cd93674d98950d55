"""From a statement to the function that executes it: table instructions, moves, loads and stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import conversions, floats, integers
from .errors import PTXError
from .operands import Lanes, Reader, address_reader, reader, target_number, writer
from .semantics import Semantics, Table
from .syntax import Kernel, Operand, Sink, Statement, ValueAndPredicate, Vector
from .types import TYPES, unsigned

if TYPE_CHECKING:
    from .machine import Machine

__all__ = ["ACCESSES", "COMPUTING", "EXCHANGES", "MOVES", "Execute", "executing"]

Execute = Callable[["Machine", Lanes], None]

COMPUTING: Table = {**integers.TABLE, **floats.TABLE, **conversions.TABLE}
MOVES = {f"mov.{t}": t for t in ("pred", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")}
MOVES["cvta.to.global.u64"] = "u64"
"""Copies of a register, with the type they have; addresses are the same in all spaces."""
EXCHANGES = ("shfl.sync.bfly.b32",)
"""Between the threads of a warp."""

_MOST_BYTES = 16
_WARP = 32
_LAST_LANE, _ALL_LANES = 31, 0xFFFFFFFF


@dataclass(frozen=True)
class Access:
    """A load or store: of ``count`` neighbouring values of a type."""

    opcode: str
    space: str
    type: str
    count: int


def _accesses() -> dict[str, Access]:
    """Of up to 16 bytes; parameters are not stored to. In local memory there is nothing: kernels must not spill."""
    accesses = {}
    for opcode, space in (("ld", "param"), ("ld", "global"), ("st", "global"), ("ld", "shared"), ("st", "shared")):
        for type_ in [t for t in TYPES if t[1:] in ("8", "16", "32", "64") and t != "f16"]:
            for count, vector in ((1, ""), (2, ".v2"), (4, ".v4")):
                if count * TYPES[type_].itemsize <= _MOST_BYTES:
                    accesses[f"{opcode}.{space}{vector}.{type_}"] = Access(opcode, space, type_, count)
    return accesses


ACCESSES = _accesses()

_UNDEFINED_HALVES_FROM = 100
"""Targets with packed fp32: LLVM may compute a half that nobody uses, from registers that nobody wrote.

There such fp32 are NaN, which shows where one is used after all.
"""


def executing(statement: Statement, kernel: Kernel) -> Execute:
    """What executes ``statement``.

    Raises:
        PTXError: the instruction, one of its modifiers or one of its operands is not known.
    """
    undefined_halves = target_number(kernel.target) >= _UNDEFINED_HALVES_FROM
    if statement.name in COMPUTING:
        return _computing(statement, COMPUTING[statement.name], undefined_halves)
    if statement.name in MOVES:
        return _move(statement, MOVES[statement.name], undefined_halves)
    if statement.name in ACCESSES:
        access = ACCESSES[statement.name]
        return (_load if access.opcode == "ld" else _store)(statement, access)
    if statement.name in EXCHANGES:
        return _butterfly(statement)
    raise PTXError(f"unknown instruction {statement.name}")


def _computing(statement: Statement, semantics: Semantics, undefined_halves: bool) -> Execute:
    result, *operands = statement.operands
    if len(operands) != len(semantics.operands):
        raise PTXError(f"{len(operands)} operands, not {len(semantics.operands)}")
    converts = statement.opcode == "cvt"
    write = writer(result, semantics.result, widening=converts)
    read = [
        reader(operand, type_, narrowing=converts, maybe_undefined=undefined_halves and type_ == "f32")
        for operand, type_ in zip(operands, semantics.operands, strict=True)
    ]
    compute = semantics.compute
    if len(read) == 1:
        (a,) = read
        return lambda machine, lanes: write(machine, lanes, compute(a(machine, lanes)))
    if len(read) == 2:
        a, b = read
        return lambda machine, lanes: write(machine, lanes, compute(a(machine, lanes), b(machine, lanes)))
    a, b, c = read
    return lambda machine, lanes: write(
        machine, lanes, compute(a(machine, lanes), b(machine, lanes), c(machine, lanes))
    )


def _move(statement: Statement, type_: str, undefined_halves: bool) -> Execute:
    target, source = statement.operands
    read = reader(source, type_, maybe_undefined=undefined_halves and isinstance(source, Vector))
    write = writer(target, type_)
    return lambda machine, lanes: write(machine, lanes, read(machine, lanes))


def _parts(operand: Operand, count: int) -> tuple[Operand, ...]:
    """The registers of an access: Triton writes braces around one, too."""
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    if len(parts) != count:
        raise PTXError(f"{len(parts)} registers, not {count}")
    return parts


def _load(statement: Statement, access: Access) -> Execute:
    space, type_, count = access.space, access.type, access.count
    target, source = statement.operands
    write = [writer(part, type_, widening=True) for part in _parts(target, count)]
    addresses, dtype, nbytes = address_reader(source), TYPES[type_], TYPES[type_].itemsize * count

    def execute(machine: Machine, lanes: Lanes) -> None:
        values = machine.load(space, addresses(machine, lanes), nbytes, lanes)
        if count == 1:
            write[0](machine, lanes, values.view(dtype))
            return
        columns = values.view(dtype).reshape(-1, count)
        for i, put in enumerate(write):
            put(machine, lanes, np.ascontiguousarray(columns[:, i]))

    return execute


def _store(statement: Statement, access: Access) -> Execute:
    space, type_, count = access.space, access.type, access.count
    target, source = statement.operands
    addresses, dtype = address_reader(target), unsigned(TYPES[type_].itemsize)
    read: list[Reader] = [reader(part, f"b{8 * dtype.itemsize}", narrowing=True) for part in _parts(source, count)]

    def execute(machine: Machine, lanes: Lanes) -> None:
        values = np.empty((machine.count(lanes), count), dtype)
        for i, get in enumerate(read):
            values[:, i] = get(machine, lanes)
        machine.store(space, addresses(machine, lanes), values.view(f"V{dtype.itemsize * count}").ravel(), lanes)

    return execute


def _butterfly(statement: Statement) -> Execute:
    """Each thread gets the value of the one whose lane differs from its own in the bits of the third operand."""
    target, source, *constants = statement.operands
    is_there = target.predicate if isinstance(target, ValueAndPredicate) else Sink()
    value = target.value if isinstance(target, ValueAndPredicate) else target
    read, write, tell = reader(source, "b32"), writer(value, "b32"), writer(is_there, "pred")
    numbers = [reader(constant, "u32") for constant in constants]

    def execute(machine: Machine, lanes: Lanes) -> None:
        warps = machine.warp if lanes is None else machine.warp[lanes]
        if warps.size % _WARP or (warps[::_WARP] != warps[_WARP - 1 :: _WARP]).any():
            raise PTXError("a shuffle that only a part of a warp takes part in")
        step, last, members = (_same_for_all(number(machine, lanes)) for number in numbers)
        if step not in range(_WARP) or last != _LAST_LANE or members != _ALL_LANES:
            raise PTXError("unknown form of a shuffle")
        values = np.broadcast_to(read(machine, lanes), warps.shape)
        write(machine, lanes, values[np.arange(warps.size) ^ step])
        tell(machine, lanes, np.array([True]))  # all lanes have a partner

    return execute


def _same_for_all(values: np.ndarray) -> int | None:
    """The number that all threads have, if they have the same."""
    return int(values[0]) if (values == values[0]).all() else None
