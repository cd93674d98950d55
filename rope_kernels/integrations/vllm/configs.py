"""Reads one of vLLM's rotary layers into the RopeConfig that it rotates by, and checks it against the layer's table.

Source: vllm/model_executor/layers/rotary_embedding of vLLM 0.32. A layer that its config does not reproduce is not
replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...config import RopeConfig
from ...core.names import PairingName
from ...errors import RopeConfigError

__all__ = ["READERS", "NotReadError", "config_of", "longrope_config", "table_of"]

_TOLERANCE = 2e-6
"""Of an angle of one position and of the scaling: vLLM computes its table in float32."""


class NotReadError(Exception):
    """A layer cannot be read; the text says why."""


def config_of(layer: Any, kind: str, is_neox_style: bool) -> RopeConfig:
    """The config of a constructed layer of vLLM's class ``kind``.

    Raises:
        NotReadError: no config has the layer's options, or its table has other angles.
    """
    try:
        cfg = READERS[kind](layer, "half" if is_neox_style else "interleaved")
    except RopeConfigError as error:
        raise NotReadError(str(error)) from error
    _check_table(cfg, layer.cos_sin_cache)
    return cfg


def _check_table(cfg: RopeConfig, table: torch.Tensor, length: int | None = None) -> None:
    """Compare the row of position 1 with the config's frequencies and scaling."""
    cos, sin = table[1].detach().double().cpu().chunk(2)
    theirs, ours = torch.atan2(sin, cos), cfg.inv_freq(length)[: cos.numel()].double()
    if theirs.numel() != ours.numel():
        raise NotReadError(f"its table has {theirs.numel()} frequencies, the config {ours.numel()}")
    limit = _TOLERANCE + 2 * torch.finfo(table.dtype).eps
    apart = (torch.remainder(theirs - ours + torch.pi, 2 * torch.pi) - torch.pi).abs().max().item()
    scaling = cfg.attention_scaling if length is None else cfg.frequency_params.scaling(length)
    scaled = (torch.hypot(cos, sin) - scaling).abs().max().item()
    if apart > limit or scaled > 2 * limit * max(1.0, scaling):
        raise NotReadError(f"its table is {apart:.1e} radians and {scaled:.1e} in scale from the config that was read")


def table_of(layer: Any) -> torch.Tensor:
    """The layer's own rows of cosines, then sines, by position."""
    if hasattr(layer, "cos_sin_cache"):
        return layer.cos_sin_cache
    short = layer.original_max_position_embeddings
    return layer.long_short_cos_sin_cache[short:] if layer.use_long_rope else layer.long_short_cos_sin_cache[:short]


def _fields(layer: Any, pairing: PairingName, **more: Any) -> dict[str, Any]:
    fields = dict(head_dim=layer.head_size, rope_theta=float(layer.base), pairing=pairing)
    if layer.rotary_dim != layer.head_size:
        share = layer.rotary_dim / layer.head_size
        if int(layer.head_size * share) != layer.rotary_dim:  # the product is rounded down
            share = (layer.rotary_dim + 0.5) / layer.head_size
        fields["partial_rotary_factor"] = share
    return fields | more


def _default(layer: Any, pairing: PairingName) -> RopeConfig:
    return RopeConfig(**_fields(layer, pairing))


def _linear(layer: Any, pairing: PairingName) -> RopeConfig:
    if len(layer.scaling_factors) != 1:
        raise NotReadError(f"has {len(layer.scaling_factors)} scaling factors, one per adapter")
    return RopeConfig(**_fields(layer, pairing, rope_type="linear", factor=float(layer.scaling_factors[0])))


def _llama3(layer: Any, pairing: PairingName) -> RopeConfig:
    return RopeConfig(**_fields(
        layer, pairing, rope_type="llama3", factor=float(layer.scaling_factor),
        low_freq_factor=float(layer.low_freq_factor), high_freq_factor=float(layer.high_freq_factor),
        original_max_position_embeddings=layer.orig_max_position,
    ))  # fmt: skip


def _alpha(layer: Any, pairing: PairingName) -> RopeConfig:
    return RopeConfig(**_fields(layer, pairing, rope_type="ntk_alpha", alpha=float(layer.scaling_alpha)))


def _dynamic(layer: Any, pairing: PairingName) -> RopeConfig:
    """vLLM's frequencies are those of its longest sequence, at every length."""
    factor, dim = layer.scaling_factor, layer.rotary_dim
    growth = factor * layer.max_position_embeddings / layer.max_trained_positions - (factor - 1)
    return RopeConfig(**_fields(layer, pairing, rope_theta=float(layer.base * growth ** (dim / (dim - 2)))))


def _ntk(layer: Any, pairing: PairingName) -> RopeConfig:
    dim, factor, mixed = layer.rotary_dim, float(layer.scaling_factor), layer.mixed_b
    index = torch.arange(dim // 2, dtype=torch.float64)
    if mixed is None:
        inv_freq = (layer.base * factor) ** (-2 * index / dim) / factor ** (2 / dim)
    else:
        slope = torch.tensor(factor, dtype=torch.float64).log() / (dim / 2) ** mixed
        inv_freq = layer.base ** (-2 * index / dim) / (slope * (index + 1) ** mixed).exp()
    return RopeConfig.from_inv_freq(inv_freq, 1.0, layer.head_size, pairing=pairing)


def _yarn(layer: Any, pairing: PairingName, **more: Any) -> RopeConfig:
    return RopeConfig(**_fields(
        layer, pairing, rope_type="yarn", factor=float(layer.scaling_factor), beta_fast=float(layer.beta_fast),
        beta_slow=float(layer.beta_slow), attention_factor=float(layer.mscale),
        original_max_position_embeddings=layer.max_position_embeddings, truncate=getattr(layer, "truncate", True),
        **more,
    ))  # fmt: skip


def _gemma4(layer: Any, pairing: PairingName) -> RopeConfig:
    share = 2 * layer.rope_angles / layer.head_size
    return RopeConfig(
        head_dim=layer.head_size, rope_type="proportional", rope_theta=float(layer.base), partial_rotary_factor=share,
        pairing=pairing,
    )  # fmt: skip


def _mrope(layer: Any, pairing: PairingName) -> RopeConfig:
    if not layer.mrope_section:
        raise NotReadError("has no mrope_section")
    more = dict(
        mrope_section=tuple(layer.mrope_section),
        axis_map="interleaved" if layer.mrope_interleaved else "contiguous",
    )
    if layer.scaling_factor is not None:
        return _yarn(layer, pairing, **more)
    return RopeConfig(**_fields(layer, pairing, rope_type="mrope", **more))


def _ernie(layer: Any, pairing: PairingName) -> RopeConfig:
    section = tuple(layer.mrope_section or ())
    return RopeConfig(**_fields(layer, pairing, rope_type="mrope", mrope_section=section, axis_map="ernie"))


READERS: dict[str, Callable[[Any, PairingName], RopeConfig]] = {
    "RotaryEmbedding": _default,
    "LinearScalingRotaryEmbedding": _linear,
    "Llama3RotaryEmbedding": _llama3,
    "DynamicNTKAlphaRotaryEmbedding": _alpha,
    "DynamicNTKScalingRotaryEmbedding": _dynamic,
    "NTKScalingRotaryEmbedding": _ntk,
    "YaRNScalingRotaryEmbedding": _yarn,
    "DeepseekScalingRotaryEmbedding": _yarn,
    "Gemma4RotaryEmbedding": _gemma4,
    "MRotaryEmbedding": _mrope,
    "Ernie4_5_VLRotaryEmbedding": _ernie,
}
"""By the name of vLLM's class, which its registry replaces by."""


def longrope_config(layer: Any) -> tuple[RopeConfig, int]:
    """The config of a Phi3LongRoPEScaledRotaryEmbedding, and the length that vLLM chose its factors for.

    Raises:
        NotReadError: as :func:`config_of`.
    """
    original = layer.original_max_position_embeddings
    length = original + int(layer.use_long_rope)
    try:
        cfg = RopeConfig(**_fields(
            layer, "half", rope_type="longrope", original_max_position_embeddings=original,
            max_position_embeddings=layer.max_position_embeddings, short_factor=tuple(layer.short_factor),
            long_factor=tuple(layer.long_factor), short_mscale=layer.short_mscale, long_mscale=layer.long_mscale,
        ))  # fmt: skip
    except RopeConfigError as error:
        raise NotReadError(str(error)) from error
    _check_table(cfg, table_of(layer), length)
    return cfg, length
