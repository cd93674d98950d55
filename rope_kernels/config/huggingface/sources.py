"""Finds the rope parameters in a transformers config and records the origin of every value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import RopeConfigError
from ..validation import nearest, raise_or_warn
from .model_types import DEFAULT_LAYERS, DEFAULT_PARAMETERS, LAYER_KEYS, LAYERS
from .objects import as_dict, looks_like_rope
from .values import Table

__all__ = ["PART", "TEXT_CONFIGS", "layers_of", "read_source", "tables_of"]

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_PARAMETERS = {"rope_scaling", "rope_parameters", "rope_theta"}
PART = "part of a composite config"
"""The key under which :func:`read_source` keeps the name of a text part."""


def read_source(config: object, strict: bool) -> dict[str, Any]:
    """The dict that holds the rope parameters: of a multimodal config, its text part.

    Raises:
        RopeConfigError: no config; or with ``strict``, rope keys beside a text part that says otherwise.
    """
    source = as_dict(config)
    for name in TEXT_CONFIGS:
        part = source.get(name)
        if part is None:
            continue
        text = as_dict(part)
        text.setdefault("model_type", f"{source.get('model_type', '')}_text")
        text[PART] = name
        for key, value in source.items():
            if value and looks_like_rope(key) and value != text.get(key):
                raise_or_warn(key, f"got {value!r} beside {name}, which has {text.get(key)!r} and is read", strict)
        return text
    return source


def layers_of(source: Mapping[str, Any]) -> dict[str, list[Table] | None] | None:
    """The tables of every layer type, ``None`` for one that does not rotate; ``None`` for flat parameters.

    Raises:
        RopeConfigError: parameters that are no dict, or nested and flat ones together.
    """
    flat: list[Table] = []
    nested: dict[str, list[Table] | None] = {}
    for name in ("rope_scaling", "rope_parameters"):
        table = source.get(name)
        if table is None:
            continue
        if not isinstance(table, Mapping):
            raise RopeConfigError(name, f"got {table!r} ({type(table).__name__}), must be a dict")
        labels = {key for key, value in table.items() if isinstance(value, Mapping)}
        if labels:
            nested |= {k: v if v is None else [Table(f"{name}.{k}", v)] for k, v in _layers(name, table).items()}
        elif table:
            flat.append(Table(name, table))
    if nested and flat:
        raise RopeConfigError(flat[0].name, f"got {dict(flat[0].values)!r} beside parameters nested by layer type")
    return nested or _split(source, flat) or _default_layers(source)


def _layers(name: str, table: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            raise RopeConfigError(f"{name}.{key}", f"got {value!r} beside layer types, must be a dict or null")
    return dict(table)


def _split(source: Mapping[str, Any], flat: list[Table]) -> dict[str, list[Table] | None] | None:
    """Flat parameters of a model whose layer types differ, as its config class nests them."""
    model = str(source.get("model_type") or "")
    if model not in LAYERS:
        model = next((like for key, like in LAYER_KEYS.items() if source.get(key) is not None), "")
    if not model:
        return None
    layers: dict[str, list[Table] | None] = {}
    for label, layer in LAYERS[model].items():
        tables = list(flat) if layer.scaled else []
        theta = source.get(layer.theta_key)
        if theta is not None:
            tables.append(Table(layer.theta_key, {"rope_theta": theta}, lone=True))
        layers[label] = [*tables, Table(f"model_type table: {model}", layer.defaults, fallback=True)]
    return layers


def _default_layers(source: Mapping[str, Any]) -> dict[str, list[Table] | None] | None:
    model = str(source.get("model_type") or "")
    if model not in DEFAULT_LAYERS or source.keys() & _PARAMETERS:
        return None
    origin = f"model_type table: {model}"
    return {label: [Table(origin, values, fallback=True)] for label, values in DEFAULT_LAYERS[model].items()}


def _flat(source: Mapping[str, Any]) -> list[Table]:
    model = str(source.get("model_type") or "")
    tables = [Table(name, source[name]) for name in ("rope_scaling", "rope_parameters") if source.get(name)]
    if model in DEFAULT_PARAMETERS and not source.keys() & _PARAMETERS:
        tables.append(Table(f"model_type table: {model}", DEFAULT_PARAMETERS[model], fallback=True))
    return tables


def tables_of(source: Mapping[str, Any], layer_type: str | None) -> list[Table]:
    """The tables to read for a layer type; for flat parameters it does not matter.

    Raises:
        RopeConfigError: nested parameters and no such layer type, or one that does not rotate.
    """
    layers = layers_of(source)
    if layers is None:
        return _flat(source)
    listed = ", ".join(layers)
    if layer_type is None:
        raise RopeConfigError("layer_type", f"missing; the parameters differ by layer type, one of {listed}")
    if layer_type not in layers:
        raise RopeConfigError(
            "layer_type", f"got {layer_type!r}, allowed are {listed}{nearest(str(layer_type), list(layers))}"
        )
    tables = layers[layer_type]
    if tables is None:
        raise RopeConfigError("layer_type", f"got {layer_type!r}, whose parameters are null: its layers do not rotate")
    return tables
