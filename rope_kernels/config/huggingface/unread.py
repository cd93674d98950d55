"""Finds keys of a config that look like RoPE and that the reader does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fields import OTHER_NAMES
from ..validation import nearest, raise_or_warn
from .model_types import LAYERS
from .objects import looks_like_rope

__all__ = ["OUTSIDE", "refuse_unread"]

OUTSIDE = {
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
}
"""Keys beside the rope parameters that are read, by the field they give."""

_THETAS = {layer.theta_key for layers in LAYERS.values() for layer in layers.values()}
_READ = {key for keys in OUTSIDE.values() for key in keys} | {
    *_THETAS,
    "rope_scaling",
    "rope_parameters",
    "rope_kernels",
    "rope_interleave",
    "rotary_dim",
    "qk_rope_head_dim",
    "no_rope_layers",
    "no_rope_layer_interval",
    "layer_rope_theta",
    "rope_scaling_layers",
    # read by refuse_without_rope, and harmless where that does not refuse
    "position_embedding_type",
    "position_embeddings_type",
    "positional_embedding_type",
    "pos_emb_type",
    "alibi",
    "use_alibi",
    "alibi_bias_max",
    "use_rope",
    "use_rotary",
    "use_rotary_embedding",
    "use_rotary_position_embeddings",
    "use_mem_rope",
    "rotary",
    "rotary_value",
    "rope",
    "use_rotary_pos_emb",
    # how exactly OLMo 1, Molmo and LLaDA compute cos and sin
    "rope_full_precision",
}
_SIZES = {"hidden_size", "d_model", "n_embd", "embed_dim", "head_dim", "num_attention_heads"}
_OTHER_PARTS = ("vision", "visual", "audio", "speech", "image", "video", "encoder", "decoder", "text", "llm", "quantiz")


def refuse_unread(source: Mapping[str, Any], strict: bool) -> None:
    """Check that every key of a config that looks like RoPE is one that is read, two levels deep.

    Raises:
        RopeConfigError: with ``strict``, such a key; or ``dim`` without ``hidden_size``, which means another format.
    """
    for key, value in source.items():
        if _says_nothing(value) or key in _READ:
            continue
        if looks_like_rope(key):
            _report(key, value, strict)
        elif isinstance(value, Mapping) and not _is_other_part(key, value):
            for inner, nested in value.items():
                if isinstance(inner, str) and looks_like_rope(inner) and not _says_nothing(nested):
                    _report(f"{key}.{inner}", nested, strict)
    if source.get("dim") is not None and not _SIZES & source.keys() - {"head_dim"}:
        problem = f"got {source['dim']!r} without hidden_size; a params.json has n_heads too, and interleaved pairs"
        raise_or_warn("dim", problem, strict)


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (list, tuple, dict, str)) and not value)


def _is_other_part(key: str, value: Mapping[Any, Any]) -> bool:
    """Whether a nested dict describes another part of a composite model."""
    return bool(value.get("model_type") or _SIZES & value.keys() or any(word in key.lower() for word in _OTHER_PARTS))


def _report(key: str, value: Any, strict: bool) -> None:
    name = key.rpartition(".")[2]
    other = OTHER_NAMES.get(name)
    hint = f"; here it is {other}" if other else nearest(name, sorted(_READ))
    raise_or_warn(key, f"got {value!r}, which looks like RoPE and is not read{hint}", strict)
