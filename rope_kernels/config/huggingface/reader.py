"""Reads a transformers config, or the dict of a config.json, into the fields of a :class:`RopeConfig`.

Accepts the old spelling (``rope_scaling``, ``type``, values beside it) and the new (``rope_parameters``, nested by
layer type). Does not import transformers: it reads an object through its ``to_dict()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...errors import RopeConfigError
from ..fields import RopeFields
from ..rope_types import ROPE_TYPES
from ..validation import nearest, raise_or_warn
from .model import read_model
from .sources import Table, Values, layers_of, read_source, tables_of

__all__ = ["OWN_FIELDS", "fields_from_hf", "layer_types_of"]

# Fields without a HuggingFace key; ``RopeConfig.to_hf`` keeps them under "rope_kernels".
OWN_FIELDS = ("pairing", "phase", "table_dtype", "rotary_offset", "axis_map")
_FIELDS = frozenset(f.name for f in fields(RopeFields)) - {"head_dim", "extra", "strict", "provenance", *OWN_FIELDS}
_TYPE_ALIASES = {"su": "longrope"}
_KEY_ALIASES = {"attn_factor": "attention_factor", "rotary_pct": "partial_rotary_factor"}
# Keys that transformers keeps among the rope parameters and that do not change the rotation.
_INERT = {
    "llama_4_scaling_beta": "the model scales its queries by it, outside the rotation",
    "max_position_embeddings": "the config's own max_position_embeddings is read",
}
_HUNYUAN_INERT = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def layer_types_of(config: object, strict: bool) -> list[str]:
    """The layer types that rotate: those of nested parameters that are not null.

    With flat parameters, the distinct ``layer_types`` of the config, or else ``["full_attention"]``.
    """
    source = read_source(config, strict)
    layers = layers_of(source)
    if layers is None:
        return list(dict.fromkeys(source.get("layer_types") or ["full_attention"]))
    return [name for name, tables in layers.items() if tables is not None]


def fields_from_hf(config: object, layer_type: str | None, strict: bool) -> dict[str, Any]:
    """Keyword arguments of :class:`RopeConfig`, provenance included.

    Args:
        config: a transformers config object, the dict of a config.json, or what ``RopeConfig.to_dict`` returns.
        layer_type: which layers' parameters, where they are nested; of no effect where they are flat.
        strict: whether unknown keys and contradictory spellings are errors; otherwise they are warnings.

    Raises:
        RopeConfigError: not a config, no such layer type, an unknown key, spellings that disagree.
    """
    if isinstance(config, Mapping) and {"head_dim", "rope_type"} <= config.keys():
        return _own_dict(config, strict)
    source = read_source(config, strict)
    tables = tables_of(source, layer_type)
    nested = layers_of(source) is not None
    values = Values(strict)
    _read_types(values, tables)
    for table in tables:
        for key, value in table.values.items():
            if key not in ("rope_type", "type"):
                _read_key(values, table, key, value)
    _read_outside(values, source, nested)
    _read_original(values, source.get("original_max_position_embeddings"), nested)
    _read_own(values, source.get("rope_kernels"))
    read_model(values, source, layer_type)
    return {**values.fields, "extra": values.extra, "strict": strict, "provenance": values.origins}


def _own_dict(config: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    known = {f.name for f in fields(RopeFields)}
    for key in sorted(config.keys() - known):
        raise_or_warn(key, f"got {config[key]!r}, no field of RopeConfig{nearest(key, sorted(known))}", strict)
    return {key: value for key, value in config.items() if key in known} | {"strict": strict}


def _read_types(values: Values, tables: list[Table]) -> None:
    for table in tables:
        for key in ("rope_type", "type"):
            name = table.values.get(key)
            name = _TYPE_ALIASES.get(name, name) if isinstance(name, str) else name
            if table.fallback:
                values.default("rope_type", name, table.origin(key))
            elif {name, values.fields.get("rope_type")} == {"mrope", "default"}:
                # Qwen2-VL configs that transformers saved hold both.
                values.replace("rope_type", "mrope", table.origin(key))
            else:
                values.put("rope_type", name, table.origin(key))
    for table in tables:
        if values.rope_type == "dynamic" and table.values.get("alpha"):
            values.replace("rope_type", "ntk_alpha", f"{table.origin('alpha')}, which makes HunYuan's dynamic constant")


def _read_key(values: Values, table: Table, key: str, value: Any) -> None:
    field, origin = _KEY_ALIASES.get(key, key), table.origin(key)
    kind = ROPE_TYPES.get(values.rope_type)
    if table.fallback:
        values.default(field, value if values.takes(field) else None, origin)
    elif key in _INERT:
        values.note(origin, value, _INERT[key])
    elif values.rope_type == "ntk_alpha" and key in _HUNYUAN_INERT:
        values.note(origin, value, "HunYuan's model code does not read it beside alpha")
    elif key in ("mrope_interleaved", "interleaved"):
        values.put("axis_map", "interleaved" if value else None, origin)
    elif field in _FIELDS:
        values.put(field, value, origin)
    elif kind is not None and not kind.builtin and kind.takes(key):
        values.extra[key] = value
    elif key == "xdrope_section":
        raise RopeConfigError(origin, f"got {value!r}; it gives the members of a pair different axes: no rotation")
    else:
        words = sorted(_FIELDS | _KEY_ALIASES.keys())
        raise_or_warn(
            origin, f"got {value!r}, unknown with rope_type {values.rope_type!r}{nearest(key, words)}", values.strict
        )


def _read_outside(values: Values, source: Mapping[str, Any], nested: bool) -> None:
    for field, keys in (
        ("max_position_embeddings", ("max_position_embeddings", "n_positions")),
        ("rope_theta", ("rope_theta", "rotary_emb_base")),
        ("partial_rotary_factor", ("partial_rotary_factor", "rotary_pct")),
    ):
        inside = field in values.fields
        for key in keys:
            # Layer types need not agree with the value beside them, which is for those that name none.
            if not (nested and inside):
                values.put(field, source.get(key), key)


def _read_original(values: Values, outside: Any, nested: bool) -> None:
    field = "original_max_position_embeddings"
    if not values.takes(field):
        return
    inside = values.fields.get(field)
    if inside is not None and outside not in (None, inside) and not nested:
        raise_or_warn(
            field, f"got {inside!r} inside and {outside!r} outside; the outer is used, as in transformers", False
        )
        values.replace(field, outside, field)
    values.default(field, outside, field)
    if field in ROPE_TYPES[values.rope_type].required:
        values.default(field, values.fields.get("max_position_embeddings"), "max_position_embeddings")


def _read_own(values: Values, own: Any) -> None:
    if own is None:
        return
    if not isinstance(own, Mapping):
        raise RopeConfigError("rope_kernels", f"got {own!r}, must be a dict")
    for key, value in own.items():
        if key not in OWN_FIELDS:
            raise_or_warn(f"rope_kernels.{key}", f"got {value!r}, allowed are {', '.join(OWN_FIELDS)}", values.strict)
        else:
            values.put(key, value, f"rope_kernels.{key}")
