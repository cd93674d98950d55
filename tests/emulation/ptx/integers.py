"""Integer, bit and predicate instructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import PTXError
from .semantics import Semantics, Table
from .types import SIGNED, TYPES, UNSIGNED

__all__ = ["TABLE"]

_TWICE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_NUMBERS = [t for t in (*UNSIGNED, *SIGNED) if t not in ("u8", "s8")]
_BITS = ("b16", "b32", "b64")
_COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def _wide(type_: str) -> Callable[..., np.ndarray]:
    twice = TYPES[_TWICE[type_]]
    return lambda a, b: a.astype(twice) * b.astype(twice)


def _high(type_: str) -> Callable[..., np.ndarray]:
    if type_ in ("u64", "s64"):
        return _high_64 if type_ == "u64" else _high_signed_64
    wide, bits = _wide(type_), 8 * TYPES[type_].itemsize
    return lambda a, b: (wide(a, b) >> bits).astype(TYPES[type_])


def _high_64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By halves of 32 bits, carries included."""
    low = np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> 32, b & low, b >> 32
    middle = a1 * b0 + ((a0 * b0) >> 32)
    return a1 * b1 + (middle >> 32) + ((a0 * b1 + (middle & low)) >> 32)


def _high_signed_64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    high = _high_64(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
    return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Truncated; the least number by -1 wraps."""
    if not b.all():
        raise PTXError("division by zero")
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - _quotient(a, b) * b


def _amount(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    """A shift by the width or more is one by the width, which numpy knows as nothing left, or only the sign."""
    return np.minimum(count, 8 * a.itemsize).astype(a.dtype)


def _left(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    return a << _amount(a, count)


def _right(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    return a >> _amount(a, count)


def _field(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe of 32 bits: ``length`` bits from ``start`` on; signed ones continue with their last bit, or with a's."""
    start, length = (np.minimum(x & 255, 32).astype(np.int64) for x in (start, length))
    bits = a.view(np.uint32).astype(np.int64) >> start
    mask = (np.int64(1) << length) - 1
    if a.dtype.kind == "i":
        last = np.maximum(start + length - 1, 0)
        negative = (length > 0) & ((a.astype(np.int64) >> last) & 1 == 1)
        bits = np.where(negative, bits | ~(mask & ((np.int64(1) << (32 - start)) - 1)), bits & mask)
        return bits.astype(np.int32)
    return (bits & mask).astype(np.uint32)


def _permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt: four bytes, each any of the eight of ``b:a``, or eight times its sign."""
    both = b.astype(np.uint64) << 32 | a
    out = np.uint32(0)
    for place in range(4):
        choice = selector >> (4 * place)
        byte = (both >> (8 * (choice & 7).astype(np.uint64)) & 255).astype(np.uint32)
        byte = np.where(choice & 8, (byte >> 7) * 255, byte)
        out = out | byte.astype(np.uint32) << (8 * place)
    return out


def _arithmetic(type_: str) -> Table:
    two = (type_, type_)
    table = {
        f"add.{type_}": Semantics(type_, two, np.add),
        f"sub.{type_}": Semantics(type_, two, np.subtract),
        f"mul.lo.{type_}": Semantics(type_, two, np.multiply),
        f"mul.hi.{type_}": Semantics(type_, two, _high(type_)),
        f"mad.lo.{type_}": Semantics(type_, (*two, type_), lambda a, b, c: a * b + c),
        f"div.{type_}": Semantics(type_, two, _quotient),
        f"rem.{type_}": Semantics(type_, two, _remainder),
        f"min.{type_}": Semantics(type_, two, np.minimum),
        f"max.{type_}": Semantics(type_, two, np.maximum),
        f"shr.{type_}": Semantics(type_, (type_, "u32"), _right),
    }
    if type_ in _TWICE:
        wide, product = _TWICE[type_], _wide(type_)
        table[f"mul.wide.{type_}"] = Semantics(wide, two, product)
        table[f"mad.wide.{type_}"] = Semantics(wide, (*two, wide), lambda a, b, c: product(a, b) + c)
    if type_ in SIGNED:
        table[f"neg.{type_}"] = Semantics(type_, (type_,), np.negative)
        table[f"abs.{type_}"] = Semantics(type_, (type_,), np.abs)
    return table


def _table() -> Table:
    table: Table = {}
    for type_ in _NUMBERS:
        table.update(_arithmetic(type_))
        for name, compare in _COMPARISONS.items():
            table[f"setp.{name}.{type_}"] = Semantics("pred", (type_, type_), compare)
    for type_ in (*_BITS, "pred"):
        two = (type_, type_)
        table[f"and.{type_}"] = Semantics(type_, two, np.bitwise_and)
        table[f"or.{type_}"] = Semantics(type_, two, np.bitwise_or)
        table[f"xor.{type_}"] = Semantics(type_, two, np.bitwise_xor)
        table[f"not.{type_}"] = Semantics(type_, two[:1], np.invert)
    for type_ in _BITS:
        table[f"shl.{type_}"] = Semantics(type_, (type_, "u32"), _left)
        table[f"shr.{type_}"] = Semantics(type_, (type_, "u32"), _right)
        table[f"setp.eq.{type_}"] = Semantics("pred", (type_, type_), np.equal)
        table[f"setp.ne.{type_}"] = Semantics("pred", (type_, type_), np.not_equal)
    for type_ in (*_BITS, *_NUMBERS, "f32", "f64"):
        table[f"selp.{type_}"] = Semantics(type_, (type_, type_, "pred"), lambda a, b, p: np.where(p, a, b))
    for type_ in ("u32", "s32"):
        table[f"bfe.{type_}"] = Semantics(type_, (type_, "u32", "u32"), _field)
    table["prmt.b32"] = Semantics("b32", ("b32", "b32", "b32"), _permute)
    return table


TABLE = _table()
