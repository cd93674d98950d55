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
from .layers import find_group, groups_of, unrotated_types
from .model import read_model
from .no_rope import refuse_without_rope
from .sources import layers_of, read_source, tables_of
from .unread import OUTSIDE, refuse_unread
from .values import Table, Values
from .vendors import read_vendor

__all__ = ["OWN_FIELDS", "fields_from_hf", "layer_types_of"]

# Fields without a HuggingFace key; ``RopeConfig.to_hf`` keeps them under "rope_kernels".
OWN_FIELDS = ("pairing", "phase", "table_dtype", "rotary_offset", "axis_map")
_FIELDS = frozenset(f.name for f in fields(RopeFields)) - {"head_dim", "extra", "strict", "provenance", *OWN_FIELDS}
_TYPE_ALIASES = {
    "su": "longrope",
    "deepseek_yarn": "yarn",
    "no_scaling": "default",
    "none": "default",
    "original": "default",
}
_TWO_MEANINGS = {
    "ntk": "theta * factor ** (d / (d - 2)), which is ntk_alpha with alpha, or vLLM's theta * factor",
    "deepseek_yarn": "yarn with interleaved pairs, unless the model_type says otherwise",
}
_KEY_ALIASES = {"rotary_pct": "partial_rotary_factor"}
# Keys that transformers keeps among the rope parameters and that do not change the rotation.
_INERT = {
    "llama_4_scaling_beta": "the model scales its queries by it, outside the rotation",
    "max_position_embeddings": "the config's own max_position_embeddings is read",
    "finetuned": "it says how the model was trained",
}
_HUNYUAN_INERT = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def layer_types_of(config: object, strict: bool) -> list[str]:
    """The labels of the layers that rotate: layer types, or a type with its theta where it has several.

    Raises:
        RopeConfigError: no layer rotates, or lists by layer that do not fit the model.
    """
    if _is_own(config):
        return ["full_attention"]
    source, _ = _open(config, strict)
    layers = layers_of(source)
    if layers is None:
        groups, unrotated = groups_of(source)
        labels = [group.label for group in groups]
    else:
        unrotated = unrotated_types(source)
        labels = [name for name, tables in layers.items() if tables is not None and name not in unrotated]
    if not labels:
        raise RopeConfigError("layer_types", f"got {', '.join(unrotated) or 'null parameters only'}; no layer rotates")
    return labels


def fields_from_hf(config: object, layer_type: str | None, strict: bool) -> dict[str, Any]:
    """Keyword arguments of :class:`RopeConfig`, provenance included.

    Args:
        config: a transformers config object, the dict of a config.json, or what ``RopeConfig.to_dict`` returns.
        layer_type: which layers' parameters, where they differ; of no effect where all layers rotate alike.
        strict: whether unknown keys and contradictory spellings are errors; otherwise they are warnings.

    Raises:
        RopeConfigError: not a config, a model or layers that do not rotate, no such layer type, an unknown key,
            spellings that disagree.
    """
    if _is_own(config):
        return _own_dict(dict(config), strict)  # type: ignore[call-overload]  # a mapping, _is_own says
    source, values = _open(config, strict)
    refuse_unread(source, strict)
    tables, nested = _select(values, source, layer_type)
    _read_types(values, tables)
    for table in tables:
        for key, value in table.values.items():
            if key not in ("rope_type", "type"):
                _read_key(values, table, key, value)
    _read_outside(values, source, nested)
    _read_original(values, source.get("original_max_position_embeddings"), nested)
    values.finish()
    _read_own(values, source.get("rope_kernels"))
    read_model(values, source, layer_type)
    return {**values.fields, "extra": values.extra, "strict": strict, "provenance": values.origins}


def _is_own(config: object) -> bool:
    return isinstance(config, Mapping) and {"head_dim", "rope_type"} <= config.keys()


def _open(config: object, strict: bool) -> tuple[dict[str, Any], Values]:
    """The config as a dict without the keys of vendors, and the values that these gave."""
    source, values = read_source(config, strict), Values(strict)
    read_vendor(values, source)
    refuse_without_rope(source, strict)
    return source, values


def _select(values: Values, source: dict[str, Any], layer_type: str | None) -> tuple[list[Table], bool]:
    """The tables for these layers, and whether they are nested by layer type."""
    nested = layers_of(source) is not None
    if nested:
        unrotated = unrotated_types(source)
        if layer_type in unrotated:
            raise RopeConfigError("layer_type", f"got {layer_type!r}: {unrotated[layer_type]}")
        tables = tables_of(source, layer_type)
    else:
        group, unrotated = find_group(source, layer_type, values.strict)
        tables = tables_of(source, layer_type)
        if group is not None and group.theta is not None:
            source.pop("rope_theta", None)
            tables = [Table(t.name, {k: v for k, v in t.values.items() if k != "rope_theta"}) for t in tables]
            tables.append(Table("layer_rope_theta", {"rope_theta": group.theta}, lone=True))
        if group is not None and not group.scaled:
            kept = ("rope_theta", "partial_rotary_factor")
            tables = [Table(t.name, {k: v for k, v in t.values.items() if k in kept}) for t in tables]
            values.remark("rope_scaling_layers", f"does not list {group.label}: these layers are not scaled")
    for name, reason in unrotated.items():
        values.remark(name, reason)
    return tables, nested


def _own_dict(config: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    known = {f.name for f in fields(RopeFields)}
    for key in sorted(config.keys() - known):
        raise_or_warn(key, f"got {config[key]!r}, no field of RopeConfig{nearest(key, sorted(known))}", strict)
    return {key: value for key, value in config.items() if key in known} | {"strict": strict}


def _read_types(values: Values, tables: list[Table]) -> None:
    for table in tables:
        for key in ("rope_type", "type"):
            name = _type_name(values, table.origin(key), table.values.get(key))
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


def _type_name(values: Values, origin: str, name: Any) -> Any:
    if not isinstance(name, str) or name in ROPE_TYPES:
        return name
    lower = name.strip().lower()
    if lower in _TWO_MEANINGS:
        raise_or_warn(origin, f"got {name!r}, which may mean {_TWO_MEANINGS[lower]}", values.strict)
    return _TYPE_ALIASES.get(lower, lower)


def _read_key(values: Values, table: Table, key: str, value: Any) -> None:
    field, origin = _KEY_ALIASES.get(key, key), table.origin(key)
    kind = ROPE_TYPES.get(values.rope_type)
    if table.fallback:
        values.default(field, value if values.takes(field) else None, origin)
    elif key == "attn_factor":
        values.multiply(value, origin)
    elif key == "extrapolation_factor" and value in (1, None):
        values.note(origin, value, "1 is what yarn does")
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
    for field, keys in OUTSIDE.items():
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
