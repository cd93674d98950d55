"""The error of a result, and the accuracy contract that bounds it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CONTRACT", "excess", "relative_error"]

CONTRACT = 5e-7
"""Largest error allowed, relative to the largest input, at positions up to 2 ** 24."""


def relative_error(got: Tensor, want: Tensor, x: Tensor) -> float:
    """``max |got - want| / max |x|``, with ``want`` float64 on the host."""
    return float((got.cpu().double() - want).abs().max() / x.abs().max())


def excess(got: Tensor, want: Tensor, x: Tensor, scaling: float = 1.0) -> float:
    """The error of a result beyond its own rounding, relative to ``scaling * max |x|``; ``inf`` if there is a NaN.

    The rounding of a 16-bit result is half a unit in the last place of the exact number's binade; the contract of
    float32 results includes their rounding.
    """
    error = (got.double() - want).abs()
    if got.dtype != torch.float32:
        info = torch.finfo(got.dtype)
        binade = torch.ldexp(torch.ones_like(want), torch.frexp(want)[1] - 1).clamp_min(info.smallest_normal)
        error = (error - binade * (info.eps / 2)).clamp_min(0)
    relative = float(error.max() / (x.abs().max().double() * scaling))
    return relative if relative == relative else float("inf")
