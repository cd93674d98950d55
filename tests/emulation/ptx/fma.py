"""a * b + c with one rounding, which numpy does not have."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

__all__ = ["fma_32", "fma_64"]

_SPLIT = 134217729.0  # 2**27 + 1


def fma_32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """In fp32. The product is exact in fp64; only its sum with c is rounded twice, which matters half way."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    rounded = total.astype(np.float32)
    half_way = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    risky = half_way | ((np.abs(total) < 2.0**-125) & (total != 0))
    if risky.any():
        parts = (np.broadcast_to(x, total.shape)[risky] for x in (product, addend))
        rounded[risky] = _rounded_to_odd_sum(*parts)
    return rounded


def _sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rounded sum, its error exactly), by Knuth."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def _rounded_to_odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in fp64; inexact ones become the neighbour with an odd last bit, so that a later rounding is right."""
    total, error = _sum(a, b)
    bits = total.view(np.int64)
    even = (error != 0) & (bits & 1 == 0) & np.isfinite(total) & np.isfinite(error)
    away = (error > 0) == (total > 0)
    return np.where(even, bits + np.where(away, 1, -1), bits).view(np.float64)


def _product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rounded product, its error exactly), by Dekker."""
    total = a * b
    (a1, a0), (b1, b0) = _halves(a), _halves(b)
    return total, a0 * b0 - (((total - a1 * b1) - a0 * b1) - a1 * b0)


def _halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def fma_64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """In fp64, by Boldo and Melquiond (Emulation of FMA and correctly rounded sums, 2008): round-to-odd in between.

    Where a factor is so large or small that a step might over- or underflow, exact fractions are rounded instead.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    product = a * b
    plain = product + c
    finite = np.isfinite(a) & np.isfinite(b)
    plain = np.where(finite & ~np.isfinite(c), c, plain)  # the product may overflow
    trivial = ~finite | ~np.isfinite(c) | (a == 0) | (b == 0)
    high, low = _product(a, b)
    sum_high, sum_low = _sum(c, low)
    total, rest = _sum(high, sum_high)
    result = np.where(trivial, plain, total + _rounded_to_odd_sum(sum_low, rest))
    x, y = (np.abs(np.frexp(v)[1]) for v in (a, b))
    for i in np.flatnonzero(~trivial & ((x > 480) | (y > 480))):
        result[i] = _exact(float(a[i]), float(b[i]), float(c[i]))
    return result


def _exact(a: float, b: float, c: float) -> float:
    """The rounded fraction, whose sign a result has that rounds to zero."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        magnitude = float(abs(exact))
    except OverflowError:
        magnitude = math.inf
    return -magnitude if exact < 0 else magnitude
