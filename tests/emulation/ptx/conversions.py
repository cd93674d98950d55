"""cvt: between integers, floating-point numbers, and the 16-bit formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .floats import from_bf16
from .semantics import Semantics, Table
from .types import SIGNED, TYPES, UNSIGNED

__all__ = ["TABLE"]

_ROUNDINGS: dict[str, Callable[..., np.ndarray]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip
_HALVES = ("f16", "bf16")
_NAN_16 = np.uint16(0x7FFF)


def _cast(type_: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.astype(TYPES[type_])


def _to_integer(type_: str, rounding: str, source: str) -> Callable[[np.ndarray], np.ndarray]:
    """Clamped to the range. NaN becomes 0, or where 64 bits are on either side, the integer of the sign bit alone."""
    info, dtype = np.iinfo(TYPES[type_]), TYPES[type_]
    above = 2.0 ** (info.bits - (info.min < 0))  # the first number that is too large, unlike info.max exact in fp64
    sign_bit = 1 << (info.bits - 1) if source == "f64" or info.bits == 64 else 0
    nan = np.array(sign_bit, np.uint64).astype(f"u{dtype.itemsize}").view(dtype)

    def convert(x: np.ndarray) -> np.ndarray:
        whole = _ROUNDINGS[rounding](x.astype(np.float64))
        inside = (whole >= float(info.min)) & (whole < above)
        limit = np.where(whole < 0, dtype.type(info.min), dtype.type(info.max))
        return np.where(inside, np.where(inside, whole, 0).astype(dtype), np.where(np.isnan(x), nan, limit))

    return convert


def _to_half(type_: str) -> Callable[[np.ndarray], np.ndarray]:
    """From fp32 to the bits of fp16 or bf16, to nearest even; one NaN for all."""

    def convert(x: np.ndarray) -> np.ndarray:
        if type_ == "f16":
            bits = x.astype(np.float16).view(np.uint16)
        else:
            wide = x.view(np.uint32)
            bits = ((wide + np.uint32(0x7FFF) + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(x), _NAN_16, bits)

    return convert


def _to_halves(type_: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Of two fp32, the first into the upper half."""
    convert = _to_half(type_)
    return lambda a, b: convert(a).astype(np.uint32) << 16 | convert(b)


def _integer_table() -> Table:
    table: Table = {}
    integers = (*UNSIGNED, *SIGNED)
    for target in integers:
        for source in integers:
            table[f"cvt.{target}.{source}"] = Semantics(target, (source,), _cast(target))
        for source in ("f32", "f64"):
            for rounding in _ROUNDINGS:
                convert = _to_integer(target, rounding, source)
                table[f"cvt.{rounding}.{target}.{source}"] = Semantics(target, (source,), convert)
    for target in ("f32", "f64"):
        for source in integers:
            table[f"cvt.rn.{target}.{source}"] = Semantics(target, (source,), _cast(target))
    return table


def _float_table() -> Table:
    table = {
        "cvt.f64.f32": Semantics("f64", ("f32",), _cast("f64")),
        "cvt.rn.f32.f64": Semantics("f32", ("f64",), _cast("f32")),
        "cvt.f32.f16": Semantics("f32", ("f16",), _cast("f32")),
        "cvt.f64.f16": Semantics("f64", ("f16",), _cast("f64")),
        "cvt.f32.bf16": Semantics("f32", ("bf16",), from_bf16),
        "cvt.f64.bf16": Semantics("f64", ("bf16",), lambda x: from_bf16(x).astype(np.float64)),
    }
    for type_ in ("f32", "f64"):
        for rounding, compute in _ROUNDINGS.items():
            table[f"cvt.{rounding}.{type_}.{type_}"] = Semantics(type_, (type_,), compute)
    for half in _HALVES:
        bits = "b16" if half == "f16" else half
        table[f"cvt.rn.{half}.f32"] = Semantics(bits, ("f32",), _to_half(half))
        table[f"cvt.rn.{half}x2.f32"] = Semantics(f"{half}x2", ("f32", "f32"), _to_halves(half))
    return table


TABLE = {**_integer_table(), **_float_table()}
