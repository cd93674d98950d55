"""The papers' formulas in 40 digits: the one statement of every rope type that the tests compare with.

Plain values in, ``mpf`` out; nothing here knows the package.
"""

from __future__ import annotations

from typing import Any

import mpmath
from mpmath import mp, mpf

mp.dps = 40


def ladder(theta: Any, d: int) -> list[mpf]:
    """RoFormer: theta ** (-2 j / d) for every pair of d channels."""
    return [mpf(theta) ** (-mpf(2 * j) / d) for j in range((d + 1) // 2)]


def linear(theta: float, d: int, factor: float) -> list[mpf]:
    """Position interpolation: the position, hence the frequency, divided by the factor."""
    return [f / mpf(factor) for f in ladder(theta, d)]


def dynamic(theta: float, d: int, factor: float, longest: int, seq_len: int | None) -> list[mpf]:
    """Dynamic NTK: theta grows with the length, from the trained length on."""
    length = max(seq_len or longest, longest)
    growth = mpf(factor) * length / longest - (mpf(factor) - 1)
    return ladder(mpf(theta) * growth ** (mpf(d) / (d - 2)), d)


def ntk_alpha(theta: float, d: int, alpha: float) -> list[mpf]:
    """HunYuan: the same growth, constant."""
    return ladder(mpf(theta) * mpf(alpha) ** (mpf(d) / (d - 2)), d)


def yarn(
    theta: float, d: int, factor: float, original: int, fast: float = 32, slow: float = 1, truncate: bool = True
) -> list[mpf]:
    """YaRN: interpolation and extrapolation mixed by a ramp over the pair's index."""

    def index(turns: float) -> mpf:
        return d * mpmath.log(original / (2 * mp.pi * mpf(turns))) / (2 * mpmath.log(theta))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = mpmath.floor(low), mpmath.ceil(high)
    low, high = max(low, mpf(0)), min(high, mpf(d - 1))
    high = high + mpf("0.001") if low == high else high
    mixed = []
    for j, f in enumerate(ladder(theta, d)):
        interpolated = min(max((j - low) / (high - low), mpf(0)), mpf(1))
        mixed.append(f / mpf(factor) * interpolated + f * (1 - interpolated))
    return mixed


def yarn_scaling(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> mpf:
    """YaRN's attention factor, or DeepSeek's ratio of two."""

    def one(weight: float) -> mpf:
        return mpf(1) if factor <= 1 else mpf("0.1") * mpf(weight) * mpmath.log(factor) + 1

    return one(mscale) / one(mscale_all_dim) if mscale and mscale_all_dim else one(1)


def llama3(theta: float, d: int, factor: float, low: float, high: float, original: int) -> list[mpf]:
    """Llama 3.1: by wavelength; short ones stay, long ones are divided, those between are mixed."""
    out = []
    for f in ladder(theta, d):
        wavelength = 2 * mp.pi / f
        if wavelength < mpf(original) / mpf(high):
            out.append(f)
        elif wavelength > mpf(original) / mpf(low):
            out.append(f / mpf(factor))
        else:
            smooth = (original / wavelength - mpf(low)) / (mpf(high) - mpf(low))
            out.append((1 - smooth) * f / mpf(factor) + smooth * f)
    return out


def longrope(theta: float, d: int, divisors: list[float]) -> list[mpf]:
    """LongRoPE: a divisor per pair."""
    return [f / mpf(x) for f, x in zip(ladder(theta, d), divisors, strict=True)]


def longrope_scaling(factor: float, original: int) -> mpf:
    """LongRoPE's attention factor."""
    return mpf(1) if factor <= 1 else mpmath.sqrt(1 + mpmath.log(factor) / mpmath.log(original))


def proportional(theta: float, head_dim: int, share: float, factor: float = 1) -> list[mpf]:
    """Gemma 4: the ladder spans the whole head, its slow part stands still."""
    rotated = int(share * head_dim // 2)
    return [f / mpf(factor) if j < rotated else mpf(0) for j, f in enumerate(ladder(theta, head_dim))]
