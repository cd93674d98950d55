"""Arithmetic and comparisons of fp32, fp64, and what is made of fp32. numpy rounds to nearest even, as .rn does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .fma import fma_32, fma_64
from .semantics import Semantics, Table

__all__ = ["TABLE", "from_bf16"]

_SMALLEST_NORMAL = np.float32(2.0**-126)
_COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": lambda a, b: (a < b) | (a > b), "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}  # fmt: skip
_OR_UNORDERED = {
    "equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt", "nan": "num",
}  # fmt: skip
"""Comparisons that NaN passes, and the one that each is the negation of."""


def _flushed(x: np.ndarray) -> np.ndarray:
    """.ftz: subnormal fp32 become zeros of their sign."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def from_bf16(x: np.ndarray) -> np.ndarray:
    """fp32 of the bits of bf16."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def _with_ftz(compute: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def flushing(*values: np.ndarray) -> np.ndarray:
        result = compute(*map(_flushed, values))
        return _flushed(result) if result.dtype == np.float32 else result

    return flushing


def _maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number if one is NaN; +0 is greater than -0."""
    return np.where((a == 0) & (b == 0), a + b, np.fmax(a, b))


def _minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -_maximum(-a, -b)


def _packed(compute: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Of two fp32 in 64 bits each."""

    def both(*values: np.ndarray) -> np.ndarray:
        pairs = (np.ascontiguousarray(x).view(np.float32).reshape(-1, 2) for x in values)
        return np.ascontiguousarray(compute(*pairs)).view(np.uint64).ravel()

    return both


def _mixed(compute: Callable[..., np.ndarray], half: str) -> Callable[..., np.ndarray]:
    """All but the last operand are of 16 bits, which fp32 holds exactly."""
    widened = from_bf16 if half == "bf16" else (lambda x: x.astype(np.float32))
    return lambda *values: compute(*map(widened, values[:-1]), values[-1])


def _rough_reciprocal(x: np.ndarray) -> np.ndarray:
    """rcp.approx.ftz.f64: of the upper half of the bits; the lower half of the result is zero."""
    upper = np.uint64(0xFFFFFFFF00000000)
    y = (1.0 / _flushed_64((x.view(np.uint64) & upper).view(np.float64))).view(np.uint64) & upper
    return _flushed_64(y.view(np.float64))


def _inverse_root(x: np.ndarray) -> np.ndarray:
    """rsqrt.approx.f32, correctly rounded: the fp64 quotient is never so near to half way between two fp32."""
    return (1.0 / np.sqrt(x.astype(np.float64))).astype(np.float32)


def _flushed_64(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 2.0**-1022, np.copysign(0.0, x), x)


def _arithmetic(type_: str, fma: Callable[..., np.ndarray]) -> Table:
    functions: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
        "add": (2, np.add), "sub": (2, np.subtract), "mul": (2, np.multiply), "min": (2, _minimum),
        "max": (2, _maximum), "neg": (1, np.negative), "abs": (1, np.abs),
    }  # fmt: skip
    table = {f"{name}.{type_}": Semantics(type_, (type_,) * n, f) for name, (n, f) in functions.items()}
    for name in ("add", "sub", "mul"):
        table[f"{name}.rn.{type_}"] = table[f"{name}.{type_}"]
    table[f"fma.rn.{type_}"] = Semantics(type_, (type_,) * 3, fma)
    compare = dict(_COMPARISONS)
    for name, opposite in _OR_UNORDERED.items():
        compare[name] = lambda a, b, ordered=_COMPARISONS[opposite]: ~ordered(a, b)
    table.update((f"setp.{name}.{type_}", Semantics("pred", (type_, type_), f)) for name, f in compare.items())
    return table


def _table() -> Table:
    single = _arithmetic("f32", fma_32)
    table = dict(single)
    for name, known in single.items():
        flushing = Semantics(known.result, known.operands, _with_ftz(known.compute))
        table[name.replace(".f32", ".ftz.f32")] = flushing
        instruction = name.split(".")[0]
        if instruction in ("add", "sub", "mul", "fma"):
            packed = ("f32x2",) * len(known.operands)
            table[f"{name}x2"] = Semantics("f32x2", packed, _packed(known.compute))
    for name, n in (("add", 2), ("sub", 2), ("add.rn", 2), ("sub.rn", 2), ("fma.rn", 3)):
        for half in ("f16", "bf16"):
            mixed = _mixed(single[f"{name}.f32"].compute, half)
            table[f"{name}.f32.{half}"] = Semantics("f32", (*[half] * (n - 1), "f32"), mixed)
    table.update(_arithmetic("f64", fma_64))
    table["div.rn.f32"] = Semantics("f32", ("f32", "f32"), np.divide)
    table["rsqrt.approx.f32"] = Semantics("f32", ("f32",), _inverse_root)
    table["rsqrt.approx.ftz.f32"] = Semantics("f32", ("f32",), _with_ftz(_inverse_root))
    table["rcp.approx.ftz.f64"] = Semantics("f64", ("f64",), _rough_reciprocal)
    return table


TABLE = _table()
