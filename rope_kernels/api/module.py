"""RotaryEmbedding: the rotation as a module that holds only a config, which casts, meta init and FSDP cannot change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..config import RopeConfig
from ..core.names import LayoutName
from .apply import apply_rope
from .checks import check_config
from .head_norm import HeadNorm

__all__ = ["RotaryEmbedding"]


class RotaryEmbedding(nn.Module):
    """Rotates q and k to their positions. It has no parameter and no buffer.

    Args:
        cfg: the RoPE config.
        layout: "bshd", "bhsd", "sbhd" or "thd", as in :func:`rope_kernels.apply_rope`.

    Raises:
        RopeShapeError: unknown layout.
        TypeError: ``cfg`` is not a :class:`RopeConfig`.
    """

    def __init__(self, cfg: RopeConfig, layout: LayoutName = "bshd") -> None:
        super().__init__()
        check_config(cfg, layout)
        self.cfg = cfg
        self.layout = layout

    def forward(
        self,
        q: Tensor,
        k: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        seq_len: int | Tensor | None = None,
        offset: int | Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inverse: bool = False,
        q_norm: HeadNorm | None = None,
        k_norm: HeadNorm | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """:func:`rope_kernels.apply_rope` with this module's config and layout."""
        return apply_rope(
            q, k, positions, self.cfg, layout=self.layout,
            seq_len=seq_len, offset=offset, cu_seqlens=cu_seqlens, inverse=inverse,
            q_norm=q_norm, k_norm=k_norm,
        )  # fmt: skip

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"{self.cfg.rope_type}, head_dim={self.cfg.head_dim}, pairing={self.cfg.pairing}, layout={self.layout}"
