"""Reads what depends on the model: the size of a head, the pairing, the axes and default values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ...errors import RopeConfigError
from ..validation import raise_or_warn
from .model_sizes import HEAD_DIM, SIZES
from .model_types import AXIAL_MAP, GLOBAL_HEAD_DIM, MROPE_MAP, PAIRING, PARTIAL, SECTIONS, THETA, TRAILING, UNSUPPORTED
from .sources import PART
from .values import Values

__all__ = ["read_model"]

_HIDDEN = ("embed_dim", "hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_num_attention_heads")
_HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels")


def read_model(values: Values, source: Mapping[str, Any], layer_type: str | None) -> None:
    """Add the values that follow from ``model_type`` and the model's sizes. Values already found stay.

    Raises:
        RopeConfigError: a model whose rotation no config describes, no head dimension, sizes that disagree.
    """
    model = str(source.get("model_type") or "")
    if model in UNSUPPORTED:
        raise RopeConfigError("model_type", f"got {model!r}; {UNSUPPORTED[model]}")
    origin = f"model_type table: {model}"
    _read_axes(values, model, origin)
    values.default("rope_theta", THETA.get(model), origin)
    if values.takes("partial_rotary_factor"):
        _read_share(values, source, layer_type, model)
    _read_head(values, source, layer_type, model)
    interleave = source.get("rope_interleave")
    if interleave is not None:
        values.default("pairing", "interleaved_to_half" if interleave else "half", "rope_interleave")
    values.default("pairing", PAIRING.get(model), origin)


def _read_axes(values: Values, model: str, origin: str) -> None:
    if model in AXIAL_MAP and values.rope_type == "default":
        values.replace("rope_type", "axial", origin)
    if values.rope_type == "axial":
        values.default("axis_map", AXIAL_MAP.get(model), origin)
        if model and "axis_map" not in values.fields:
            raise RopeConfigError("axis_map", f"missing; how model_type {model!r} shares its axes is not known here")
    if values.rope_type in ("default", "mrope"):
        values.default("mrope_section", SECTIONS.get(model), origin)
    if "mrope_section" in values.fields:
        values.default("axis_map", MROPE_MAP.get(model), origin)
        if model.startswith("hunyuan_vl"):
            raise RopeConfigError("mrope_section", f"{model!r} gives the members of a pair different axes: no rotation")


def _read_head(values: Values, source: Mapping[str, Any], layer_type: str | None, model: str) -> None:
    if _is_latent(source, model):
        values.put("head_dim", _count(source, "qk_rope_head_dim"), "qk_rope_head_dim")
        return
    head_dim, origin = _head_dim(source, layer_type, model)
    values.put("head_dim", head_dim, origin)
    if model in TRAILING:
        share = values.fields.get("partial_rotary_factor", 1.0)
        values.default("rotary_offset", head_dim - int(head_dim * share), f"model_type table: {model}")


def _is_latent(source: Mapping[str, Any], model: str) -> bool:
    return source.get("qk_rope_head_dim") is not None and model not in TRAILING


def _head_dim(source: Mapping[str, Any], layer_type: str | None, model: str) -> tuple[int, str]:
    layer_types = list(source.get("layer_types") or ())
    for index, layer in (source.get("per_layer_config") or {}).items():
        if layer.get("head_dim") and layer_types[int(index)] == layer_type:
            return _count(layer, "head_dim"), f"per_layer_config[{index}].head_dim"
    if layer_type == "full_attention":
        if source.get("global_head_dim") is not None:
            return _count(source, "global_head_dim"), "global_head_dim"
        if model in GLOBAL_HEAD_DIM and "per_layer_config" not in source:
            return GLOBAL_HEAD_DIM[model], f"model_type table: {model}"
    for key in _HEAD_DIM:
        if source.get(key) is not None:
            return _count(source, key), key
    hidden, heads = (next((k for k in keys if source.get(k) is not None), None) for keys in (_HIDDEN, _HEADS))
    part = source.get(PART)  # a composite config saves only what differs from the class
    if model in HEAD_DIM and (part or hidden):
        return HEAD_DIM[model], f"model_type table: {model}"
    if part and model in SIZES and (hidden is None or heads is None):
        sizes = (_count(source, key) if key else size for key, size in zip((hidden, heads), SIZES[model], strict=True))
        return next(sizes) // next(sizes), f"hidden_size // num_attention_heads, model_type table: {model}"
    if hidden is None or heads is None:
        _refuse_without_head(source)
    return _count(source, hidden) // _count(source, heads), f"{hidden} // {heads}"


def _refuse_without_head(source: Mapping[str, Any]) -> NoReturn:
    parts = list(_parts_with_heads(source, ""))
    hint = f"; parts with heads of their own are {', '.join(parts)}: pass one of them" if parts else ""
    raise RopeConfigError(
        "head_dim", f"missing; head_dim, qk_rope_head_dim or hidden_size and num_attention_heads are needed{hint}"
    )


def _parts_with_heads(source: Mapping[str, Any], path: str) -> Iterator[str]:
    """Paths of the nested configs that have the size of a head, or a model type whose size is known."""
    for key, value in source.items():
        part = value.to_dict() if hasattr(value, "to_dict") else value
        if not isinstance(part, Mapping):
            continue
        sized = any(part.get(k) for k in _HEAD_DIM) or all(any(part.get(k) for k in x) for x in (_HIDDEN, _HEADS))
        if sized or str(part.get("model_type")) in HEAD_DIM.keys() | SIZES.keys():
            yield f"{path}{key}"
        else:
            yield from _parts_with_heads(part, f"{path}{key}.")


def _count(source: Mapping[str, Any], key: str) -> int:
    value = source[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise RopeConfigError(key, f"got {value!r} ({type(value).__name__}), must be an integer over 0")
    return value


def _read_share(values: Values, source: Mapping[str, Any], layer_type: str | None, model: str) -> None:
    """Read ``partial_rotary_factor`` from a count of channels, or from the share of a wider head."""
    share = values.fields.get("partial_rotary_factor")
    if _is_latent(source, model):
        if share not in (None, 1):
            _check_latent_share(values, source, share)
        return
    if source.get("rotary_dim") is not None:
        rotary_dim, (head_dim, _) = _count(source, "rotary_dim"), _head_dim(source, layer_type, model)
        if share is None:
            values.put("partial_rotary_factor", _share(rotary_dim, head_dim), f"rotary_dim / {head_dim}")
        elif isinstance(share, float) and int(share * head_dim) != rotary_dim:
            problem = f"got {share!r} from {values.origins['partial_rotary_factor']} and rotary_dim {rotary_dim}"
            raise_or_warn("partial_rotary_factor", f"{problem}; they must agree for head_dim {head_dim}", values.strict)
    values.default("partial_rotary_factor", PARTIAL.get(model), f"model_type table: {model}")


def _share(rotary_dim: int, head_dim: int) -> float:
    share = rotary_dim / head_dim
    return share if int(share * head_dim) == rotary_dim else math.nextafter(share, 2.0)


def _check_latent_share(values: Values, source: Mapping[str, Any], share: Any) -> None:
    """Latent attention rotates a separate tensor; a share of the whole head must give that tensor's size."""
    origin, rotated = values.origins["partial_rotary_factor"], _count(source, "qk_rope_head_dim")
    whole = [source.get("head_dim"), (source.get("qk_nope_head_dim") or 0) + rotated]
    heads = [head for head in whole if head and head >= rotated]
    if not isinstance(share, (int, float)) or all(int(head * share) != rotated for head in heads):
        problem = f"got {share!r} from {origin}, of {heads} channels, and qk_rope_head_dim {rotated}"
        raise_or_warn("partial_rotary_factor", f"{problem}; they must agree", values.strict)
    values.replace("partial_rotary_factor", 1.0, f"{origin} = {share!r}, which is qk_rope_head_dim")
