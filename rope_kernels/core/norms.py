"""The norm of a head beside its rotation: its numbers, and the same arithmetic in torch operations.

It is the per-head RMS norm of Qwen3, Gemma 3, HunYuan and Llama 4: over all channels of a head, also those that are not
rotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from ..errors import RopeConfigError
from .pairs import rotate_pairs
from .rotation import Rotation

__all__ = ["Norm", "normed", "rotate_normed", "rotate_normed_backward"]

_ORDERS = ("before", "after")
Factors = tuple[Tensor, Tensor]
"""float32 (batch or 1, tokens, 1, pairs) cosines and sines, or their negatives for the way back."""


@dataclass(frozen=True)
class Norm:
    """What a kernel must know of a norm besides its weight.

    Attributes:
        eps: added to the mean of the squares.
        weight_offset: added to the weight; without a weight, the factor is 1.
        after_rope: norm the rotated head instead of the head that is rotated.
    """

    eps: float
    weight_offset: float = 0.0
    after_rope: bool = False

    def encode(self) -> str:
        """``eps|weight_offset|order``, as in the operator's text."""
        return f"{self.eps!r}|{self.weight_offset!r}|{_ORDERS[self.after_rope]}"

    @classmethod
    def decode(cls, name: str, text: str) -> Norm:
        """The inverse of :meth:`encode`. ``name``: the word of the operator's text, for the error."""
        eps, offset, order = (*text.split("|"), "", "")[:3]
        try:
            norm = cls(float(eps), float(offset), order == _ORDERS[1])
        except ValueError:
            norm = None
        if norm is None or norm.encode() != text or not (isfinite(norm.weight_offset) and 0 <= norm.eps < inf):
            raise RopeConfigError("spec", f"{name} is {text!r}, must be eps|weight_offset|before or after")
        return norm


def _factors_of(norm: Norm, weight: Tensor | None) -> Tensor | None:
    """float32 (head_dim,): what each channel is multiplied by; ``None`` without a weight."""
    return None if weight is None else weight.float() + norm.weight_offset


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _weighted(x: Tensor, u: Tensor | None) -> Tensor:
    return x if u is None else x * u


def normed(x: Tensor, norm: Norm, weight: Tensor | None) -> Tensor:
    """``x`` (..., heads, head_dim) normed and not rotated, in float32."""
    x = x.float()
    return _weighted(x * _inverse_rms(x, norm.eps), _factors_of(norm, weight))


def rotate_normed(x: Tensor, turn: Factors, rotation: Rotation, norm: Norm, weight: Tensor | None) -> Tensor:
    """``x`` (batch, tokens, heads, head_dim) normed and rotated, in float32 operations that torch can differentiate."""
    (cos, sin), u, x = turn, _factors_of(norm, weight), x.float()
    if norm.after_rope:
        rotated = rotate_pairs(x, (cos, cos), (sin, sin), rotation, False)
        return _weighted(rotated * _inverse_rms(rotated, norm.eps), u)
    return rotate_pairs(_weighted(x * _inverse_rms(x, norm.eps), u), (cos, cos), (sin, sin), rotation, False)


def rotate_normed_backward(
    grad: Tensor, x: Tensor, turn: Factors, rotation: Rotation, norm: Norm, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(float32 gradient of ``x``, float32 (head_dim,) gradient of the weight or ``None``)."""
    (cos, sin), u, x, grad = turn, _factors_of(norm, weight), x.float(), grad.float()
    if norm.after_rope:
        x = rotate_pairs(x, (cos, cos), (sin, sin), rotation, False)
    else:
        grad = rotate_pairs(grad, (cos, cos), (-sin, -sin), rotation, True)
    r = _inverse_rms(x, norm.eps)
    z = x * r
    of_weight = None if weight is None else (grad * z).sum((0, 1, 2))
    h = _weighted(grad, u)
    of_x = r * (h - z * (h * z).mean(-1, keepdim=True))
    if norm.after_rope:
        of_x = rotate_pairs(of_x, (cos, cos), (-sin, -sin), rotation, True)
    return of_x, of_weight
