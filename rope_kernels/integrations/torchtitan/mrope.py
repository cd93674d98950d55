"""Qwen3.5's MRoPE of torchtitan on these kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchtitan.models.qwen3_5.rope import MRoPE

from ...api.apply import apply_rope
from .modules import RopeKernels, positions_like

__all__ = ["RopeKernelsMRoPE"]


class RopeKernelsMRoPE(RopeKernels, MRoPE):  # type: ignore[misc]
    """MRoPE: positions of (batch, seq, 3) for time, height and width, or of (batch, seq) for text."""

    rope_kernels_pairing = "half"

    @dataclass(kw_only=True, slots=True)
    class Config(MRoPE.Config):  # type: ignore[misc]
        """The same fields as ``MRoPE.Config``."""

    def _rotated(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = positions_like(positions, query)
        if rows is not None and rows.dim() == 3:
            rows = rows.permute(2, 0, 1)
        q, k = apply_rope(query, key, rows, self.rope_kernels_config)
        assert k is not None  # for mypy: there was a key
        return q, k
