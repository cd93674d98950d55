"""HeadNorm: the per-head RMS norm that a rotation can be fused with."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import RopeShapeError

__all__ = ["HeadNorm"]


class HeadNorm:
    """RMS norm of each head of q or k, over all its channels, fused with the rotation.

    A head x becomes ``x / sqrt(mean(x * x) + eps) * (weight + weight_offset)``, computed in float32 and rounded once,
    after the rotation, to q's dtype. It is not for norms over the whole projection (OLMo 2), nor for LayerNorm. Make
    one for each call: it holds no copy, and two of them are equal only if they are one object.

    Example::

        q_norm = rk.HeadNorm(self.q_norm.weight, self.q_norm.variance_epsilon)
        k_norm = rk.HeadNorm(self.k_norm.weight, self.k_norm.variance_epsilon)
        q, k = rk.apply_rope(q, k, positions, cfg, q_norm=q_norm, k_norm=k_norm)

    Args:
        weight: (head_dim,), float32, float16 or bfloat16, on q's device; ``None``: no weight.
        eps: added to the mean of the squares.
        weight_offset: added to the weight, as 1 in Gemma.
        after_rope: norm the rotated heads (HunYuan, Llama 4) instead of those that are rotated (Qwen3, Gemma 3).

    Raises:
        RopeShapeError: an argument has the wrong type or value.
    """

    __slots__ = ("after_rope", "eps", "weight", "weight_offset")

    def __init__(
        self, weight: Tensor | None, eps: float, *, weight_offset: float = 0.0, after_rope: bool = False
    ) -> None:
        if weight is not None and not isinstance(weight, Tensor):
            hint = "; pass the module's weight" if isinstance(getattr(weight, "weight", None), Tensor) else ""
            raise RopeShapeError(f"weight: got {type(weight).__name__}, a tensor or None is needed{hint}")
        if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 <= eps < math.inf:
            raise RopeShapeError(f"eps: got {eps!r}, must be a finite number of at least 0")
        is_number = isinstance(weight_offset, (int, float)) and not isinstance(weight_offset, bool)
        if not is_number or not math.isfinite(weight_offset):
            raise RopeShapeError(f"weight_offset: got {weight_offset!r}, must be a finite number")
        if weight is None and weight_offset:
            raise RopeShapeError(f"weight_offset: got {weight_offset!r} without a weight, must then be 0")
        if not isinstance(after_rope, bool):
            raise RopeShapeError(f"after_rope: got {after_rope!r}, allowed are True and False")
        self.weight = weight
        self.eps = float(eps)
        self.weight_offset = float(weight_offset)
        self.after_rope = after_rope

    def __repr__(self) -> str:
        """Everything but the weight's values."""
        weight = None if self.weight is None else tuple(self.weight.shape)
        rest = f"{self.eps}, weight_offset={self.weight_offset}, after_rope={self.after_rope}"
        return f"HeadNorm(weight={weight}, {rest})"
