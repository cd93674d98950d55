"""vLLM's rotary layers with our kernels in place of their forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...api.apply import apply_rope, apply_rope_
from ...config import RopeConfig
from .configs import NotReadError, config_of, longrope_config
from .report import note

__all__ = ["longrope_layer", "rotary_layer"]


def _rotate(
    query: Tensor, key: Tensor | None, positions: Tensor, cfg: RopeConfig, seq_len: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """In place in eager code, out of place where a graph is traced.

    vLLM functionalises graphs in a way in which a call in place on slices of qkv copies all of qkv twice.
    """
    shapes = query.shape, None if key is None else key.shape
    tokens = positions.shape[-1]
    q = query.view(tokens, -1, cfg.head_dim)
    k = None if key is None else key.view(tokens, -1, cfg.head_dim)
    if not torch.compiler.is_compiling():
        apply_rope_(q, k, positions, cfg, layout="thd", seq_len=seq_len)
        return query, key
    q, k = apply_rope(q, k, positions, cfg, layout="thd", seq_len=seq_len)
    return q.view(shapes[0]), None if k is None or shapes[1] is None else k.view(shapes[1])


def rotary_layer(own: type, kind: str) -> type:
    """A subclass of vLLM's ``own``, named ``kind`` there; it keeps the own forward where it cannot be read."""
    has_axes = "MRotary" in kind or "Ernie" in kind

    class Layer(own):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Models may change is_neox_style later (ernie45, paddleocr_vl), and no config can be made while traced.
            self.rope_kernels_configs: dict[bool, RopeConfig | None] = {}
            for is_neox_style in (True, False):
                found: RopeConfig | str
                try:
                    found = config_of(self, kind, is_neox_style)
                except Exception as error:  # whatever it is, vLLM's own layer works
                    found = str(error) if isinstance(error, NotReadError) else f"{type(error).__name__}: {error}"
                self.rope_kernels_configs[is_neox_style] = None if isinstance(found, str) else found
                if is_neox_style == bool(self.is_neox_style):
                    note(kind, found)

        def dispatch_forward(self, compile_native: bool) -> Any:
            """Under Inductor vLLM would choose ``forward_native``. The call keeps its lists of enabled operators."""
            self.rope_kernels_own_forward = super().dispatch_forward(compile_native)
            return self.rope_kernels_forward

        def rope_kernels_forward(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None, offsets: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            """vLLM's forward: query and key are (tokens, heads * head_size) or (tokens, heads, head_size)."""
            cfg = self.rope_kernels_configs[bool(self.is_neox_style)]
            if cfg is None:
                given = (positions, query, key) if offsets is None else (positions, query, key, offsets)
                return self.rope_kernels_own_forward(*given)
            if offsets is not None:
                positions = positions + offsets
            return _rotate(query, key, positions if has_axes else positions.flatten(), cfg)

    Layer.__name__ = Layer.__qualname__ = f"RopeKernels{kind}"
    return Layer


def longrope_layer(own: type) -> type:
    """A subclass of vLLM's Phi3LongRoPEScaledRotaryEmbedding, which is no CustomOp."""

    class Layer(own):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.rope_kernels_config: tuple[RopeConfig, int] | None = None
            try:
                self.rope_kernels_config = longrope_config(self)
                note(own.__name__, self.rope_kernels_config[0])
            except Exception as error:  # whatever it is, vLLM's own layer works
                note(own.__name__, str(error))

        def forward(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None, offsets: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            """vLLM's forward."""
            if self.rope_kernels_config is None:
                return super().forward(positions, query, key, offsets)
            cfg, length = self.rope_kernels_config
            positions = positions if offsets is None else positions + offsets
            return _rotate(query, key, positions.flatten(), cfg, length)

    Layer.__name__ = Layer.__qualname__ = own.__name__
    return Layer
