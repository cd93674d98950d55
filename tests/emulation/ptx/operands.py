"""From operands of statements to functions that read and write them in a machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .errors import PTXError
from .syntax import Address, Immediate, Operand, Register, Sink, Special, Symbol, Vector
from .types import TYPES, unsigned, width

if TYPE_CHECKING:
    from .machine import Machine

__all__ = ["Lanes", "Reader", "Writer", "address_reader", "reader", "writer"]

Lanes = np.ndarray | None
"""Which threads of a machine act, in ascending order; ``None`` for all."""
Reader = Callable[["Machine", Lanes], np.ndarray]
"""Values of an operand: one per acting thread, or one for all."""
Writer = Callable[["Machine", Lanes, np.ndarray], None]


def reader(operand: Operand, type_: str, *, narrowing: bool = False, maybe_undefined: bool = False) -> Reader:
    """How to read ``operand`` as ``type_``.

    Args:
        operand: from a statement.
        type_: PTX type.
        narrowing: a wider register will do, of which the lower bits count (st and cvt).
        maybe_undefined: a register that was never written gives NaN instead of an error.

    Raises:
        PTXError: the operand cannot have that type.
    """
    if isinstance(operand, Register):
        return _register_reader(operand, type_, narrowing, maybe_undefined)
    if isinstance(operand, Immediate):
        constant = _constant(operand, type_)
        return lambda machine, lanes: constant
    if isinstance(operand, Special) and width(type_) == 4:
        return lambda machine, lanes: _of(machine.special(operand.name), lanes).view(TYPES[type_])
    if isinstance(operand, Symbol) and width(type_) in (4, 8):
        return lambda machine, lanes: np.array([machine.address_of(operand.name)], TYPES[type_])
    if isinstance(operand, Vector):
        return _packing_reader(operand, type_, maybe_undefined)
    raise PTXError(f"operand {operand} as .{type_}")


def _of(values: np.ndarray, lanes: Lanes) -> np.ndarray:
    return values if lanes is None or values.size == 1 else values[lanes]


def _register_reader(register: Register, type_: str, narrowing: bool, maybe_undefined: bool) -> Reader:
    _check_width(register, type_, narrowing)
    slot, name, dtype, size = register.slot, register.name, TYPES[type_], width(register.type)
    narrow, whole, part = size > width(type_), unsigned(max(size, 1)), unsigned(dtype.itemsize)

    def read(machine: Machine, lanes: Lanes) -> np.ndarray:
        values = machine.registers[slot]
        if values is None or slot in machine.partly_written:
            values = machine.defined_values(slot, name, size, lanes, maybe_undefined)
        if lanes is not None and values.size > 1:
            values = values[lanes]
        if narrow:
            values = values.view(whole).astype(part)
        return values if values.dtype is dtype else values.view(dtype)

    return read


def _check_width(register: Register, type_: str, wider: bool) -> None:
    have, want = width(register.type), width(type_)
    if have != want and not (wider and have > want > 0):
        raise PTXError(f"register {register.name} is .{register.type}, not .{type_}")


def _constant(immediate: Immediate, type_: str) -> np.ndarray:
    dtype = TYPES[type_]
    if immediate.width not in (0, dtype.itemsize):
        raise PTXError(f"a constant of {immediate.width} bytes as .{type_}")
    if type_ == "pred":
        return np.array([immediate.value != 0])
    bits = immediate.value & ((1 << 8 * dtype.itemsize) - 1)
    return np.array([bits], unsigned(dtype.itemsize)).view(dtype)


def _packing_reader(vector: Vector, type_: str, maybe_undefined: bool) -> Reader:
    """The first part is the lowest."""
    size, count = width(type_), len(vector.parts)
    part = f"b{8 * size // count}"
    read = [reader(operand, part, maybe_undefined=maybe_undefined) for operand in vector.parts]
    dtype, shift = unsigned(size), 8 * size // count

    def pack(machine: Machine, lanes: Lanes) -> np.ndarray:
        value = read[0](machine, lanes).astype(dtype)
        for place in range(1, count):
            value = value | read[place](machine, lanes).astype(dtype) << dtype.type(place * shift)
        return value.view(TYPES[type_])

    return pack


def writer(operand: Operand, type_: str, *, widening: bool = False) -> Writer:
    """How to write values of ``type_`` to ``operand``.

    ``widening``: into a wider register too, extended by zeros or, signed, by the sign (ld and cvt).
    """
    if isinstance(operand, Sink):
        return lambda machine, lanes, values: None
    if isinstance(operand, Vector):
        return _unpacking_writer(operand, type_)
    if not isinstance(operand, Register):
        raise PTXError(f"result {operand}")
    _check_width(operand, type_, widening)
    slot, size = operand.slot, width(operand.type)
    if size == width(type_):
        return lambda machine, lanes, values: machine.write(slot, lanes, values)
    bits = TYPES[type_] if TYPES[type_].kind == "i" else unsigned(width(type_))
    wide = unsigned(size)
    return lambda machine, lanes, values: machine.write(slot, lanes, values.view(bits).astype(wide))


def _unpacking_writer(vector: Vector, type_: str) -> Writer:
    size, count = width(type_), len(vector.parts)
    part = 8 * size // count
    write = [writer(operand, f"b{part}") for operand in vector.parts]
    dtype, narrow = unsigned(size), unsigned(size // count)

    def unpack(machine: Machine, lanes: Lanes, values: np.ndarray) -> None:
        bits = values.view(dtype)
        for place, put in enumerate(write):
            put(machine, lanes, (bits >> dtype.type(place * part)).astype(narrow))

    return unpack


def address_reader(address: Operand) -> Reader:
    """uint64 addresses. Those of 32 bits, in shared memory, wrap there."""
    if not isinstance(address, Address):
        raise PTXError(f"address {address}")
    base, offset = address.base, address.offset
    short = isinstance(base, Register) and width(base.type) == 4
    read = reader(base, "u32" if short else "u64")
    mask = np.uint64(0xFFFFFFFF if short else 2**64 - 1)
    step = np.uint64(offset & 2**64 - 1)
    if not offset and not short:
        return read
    return lambda machine, lanes: (read(machine, lanes).astype(np.uint64) + step) & mask


def target_number(target: str) -> int:
    """90 of ``sm_90a``."""
    match = re.search(r"\d+", target)
    if match is None:
        raise PTXError(f"target {target}")
    return int(match[0])
