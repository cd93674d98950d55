"""The layers of the shipped models, with random q and k in their shapes, for demo, check and bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import RopeConfig
from ..config.huggingface.sources import TEXT_CONFIGS
from ..errors import RopeConfigError
from .catalog import names, shipped

__all__ = ["ModelLayers", "layers_of", "shipped_layers"]

_USUAL_CONTEXT = 4096  # for a config without one
_Q_HEADS = ("num_attention_heads", "n_head", "num_heads")


@dataclass(frozen=True)
class ModelLayers:
    """The layers of one model that share a rotation.

    Attributes:
        model: name of the shipped config.
        layer_type: transformers' name of the layers.
        label: ``model``, and the layer type if the model has several.
        source: the dict of the config.json.
        config: the RoPE config.
        q_heads: query heads.
        kv_heads: key heads; 1 with latent attention, whose rotated key all heads share.
        context: where positions end: the model's longest context, times ``factor`` for dynamic.
    """

    model: str
    layer_type: str
    label: str
    source: Mapping[str, Any]
    config: RopeConfig
    q_heads: int
    kv_heads: int
    context: int

    def positions(self, tokens: int, batch: int, device: torch.device) -> Tensor:
        """int64 (batch, tokens) or (axes, batch, tokens): the last of the context; sequence b ends b tokens earlier."""
        last = torch.arange(self.context - tokens, self.context, device=device)
        positions = last - torch.arange(batch, device=device)[:, None]
        axes = self.config.num_axes
        return positions if axes == 1 else positions - 16 * torch.arange(axes, device=device)[:, None, None]

    def inputs(self, tokens: int, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Random q and k (batch, tokens, heads, head_dim), the same in every run."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(batch, tokens, heads, self.config.head_dim) for heads in (self.q_heads, self.kv_heads)]
        q, k = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        return q, k


def shipped_layers(only: Sequence[str] = ()) -> list[ModelLayers]:
    """The layers of every layer type of the shipped configs, or of those named in ``only``.

    Raises:
        SourceError: no shipped config has a name of ``only``.
        RopeConfigError: a shipped config is wrong.
    """
    found = []
    for name in only or names():
        source = shipped(name)
        layers = RopeConfig.per_layer(source)
        for layer_type, config in layers.items():
            label = f"{name} {layer_type.removesuffix('_attention')}" if len(layers) > 1 else name
            found.append(layers_of(name, layer_type, label, source, config))
    return found


def layers_of(model: str, layer_type: str, label: str, source: Mapping[str, Any], config: RopeConfig) -> ModelLayers:
    """The layers of any config.json that are rotated by ``config``.

    Raises:
        RopeConfigError: the config.json does not give the number of heads.
    """
    values = next((source[key] for key in TEXT_CONFIGS if isinstance(source.get(key), Mapping)), source)
    q_heads = next((values[key] for key in _Q_HEADS if key in values), None)
    if not isinstance(q_heads, int):
        raise RopeConfigError(
            _Q_HEADS[0], f"got {q_heads!r}, a number is needed here, under that key or {_Q_HEADS[1:]}"
        )
    kv_heads = values.get("num_key_value_heads") or q_heads
    if "qk_rope_head_dim" in values:
        kv_heads = 1
    elif layer_type == "full_attention":
        kv_heads = values.get("num_global_key_value_heads") or kv_heads
    context = config.max_position_embeddings or _USUAL_CONTEXT
    if config.rope_type == "dynamic" and config.factor:
        context = int(context * config.factor)
    return ModelLayers(model, layer_type, label, source, config, q_heads, kv_heads, context)
