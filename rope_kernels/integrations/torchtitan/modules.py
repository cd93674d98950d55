"""torchtitan's RoPE modules with our call in place of their forward, and no table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE

from ...api.apply import apply_rope
from ...config import RopeConfig
from .reading import config_of

__all__ = ["RopeKernels", "RopeKernelsComplexRoPE", "RopeKernelsCosSinRoPE"]


class RopeKernels:
    """What the modules share. The buffer ``cache`` stays for torchtitan's shardings, with no rows."""

    rope_kernels_pairing = "interleaved"
    rope_kernels_config: RopeConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.rope_kernels_config = config_of(config, self.rope_kernels_pairing)

    def _precompute_cache(self) -> Tensor:
        return torch.empty(0, 1)

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotate query and key.

        Args:
            query: (batch, seq, heads, dim); float32, float16 or bfloat16; may be a DTensor.
            key: as ``query``, with its own number of heads.
            positions: (1 or batch, seq) in tokens, of this rank's tokens; ``None`` counts from 0. No longest position
                is enforced, since there is no table that could end.

        Returns:
            Query and key rotated, in their dtypes.

        Raises:
            RopeShapeError: a tensor does not fit.
        """
        if not spmd.is_type_checking():
            return self._rotated(query, key, positions)
        with spmd.no_typecheck():
            q, k = self._rotated(query, key, positions)
        spmd.assert_type_like(q, query)
        spmd.assert_type_like(k, key)
        return q, k

    def _rotated(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k = apply_rope(query, key, positions_like(positions, query), self.rope_kernels_config)
        assert k is not None  # for mypy: there was a key
        return q, k


def positions_like(positions: Tensor | None, query: Tensor) -> Tensor | None:
    """``positions``, (batch, seq, ...) of this rank, as a DTensor sharded over batch and seq as ``query`` is.

    torchtitan hands plain positions to DTensors of queries and means those of the rank's own tokens.
    """
    if positions is None or isinstance(positions, DTensor) or not isinstance(query, DTensor):
        return positions
    placements = [p if isinstance(p, Shard) and p.dim < 2 else Replicate() for p in query.placements]
    return DTensor.from_local(positions, query.device_mesh, placements, run_check=False)


class RopeKernelsComplexRoPE(RopeKernels, ComplexRoPE):  # type: ignore[misc]
    """ComplexRoPE: neighbouring channels make a pair (Llama 3, DeepSeek-V3)."""

    @dataclass(kw_only=True, slots=True)
    class Config(ComplexRoPE.Config):  # type: ignore[misc]
        """The same fields as ``ComplexRoPE.Config``."""


class RopeKernelsCosSinRoPE(RopeKernels, CosSinRoPE):  # type: ignore[misc]
    """CosSinRoPE: channel i and channel i + dim / 2 make a pair (Qwen3, gpt-oss)."""

    rope_kernels_pairing = "half"

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):  # type: ignore[misc]
        """The same fields as ``CosSinRoPE.Config``."""
