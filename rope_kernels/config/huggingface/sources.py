"""Finds the rope parameters in a transformers config and records the origin of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import RopeConfigError
from ..rope_types import ROPE_TYPES
from ..validation import nearest, raise_or_warn
from .model_types import LAYER_KEYS, LAYERS

__all__ = ["TEXT_CONFIGS", "Table", "Values", "layers_of", "read_source", "tables_of"]

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_ROPE_KEYS = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Table:
    """A dict of rope parameters.

    Attributes:
        name: its name in messages.
        values: its keys and values.
        fallback: whether its values are only defaults.
        lone: whether ``name`` is itself the key of the value.
    """

    name: str
    values: Mapping[str, Any]
    fallback: bool = False
    lone: bool = False

    def origin(self, key: str) -> str:
        """Where the value of ``key`` came from."""
        return self.name if self.fallback or self.lone else f"{self.name}.{key}"


class Values:
    """Fields found so far, each with its origin. Two spellings of one field must agree."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.fields: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    @property
    def rope_type(self) -> str:
        """The rope type found so far."""
        return str(self.fields.get("rope_type", "default"))

    def takes(self, field: str) -> bool:
        """Whether the type reads ``field``."""
        return self.rope_type in ROPE_TYPES and ROPE_TYPES[self.rope_type].takes(field)

    def put(self, field: str, value: Any, origin: str) -> None:
        """Record a value unless it is ``None``. Without ``strict`` the first of two different values wins."""
        if value is None:
            return
        if field not in self.fields:
            self.replace(field, value, origin)
        elif self.fields[field] != value:
            first = f"{self.fields[field]!r} from {self.origins[field]}"
            raise_or_warn(field, f"got {first} and {value!r} from {origin}; they must agree", self.strict)

    def default(self, field: str, value: Any, origin: str) -> None:
        """Record a value unless there is one."""
        if value is not None and field not in self.fields:
            self.replace(field, value, origin)

    def replace(self, field: str, value: Any, origin: str) -> None:
        """Record a value in place of an earlier one."""
        self.fields[field] = value
        self.origins[field] = origin

    def note(self, origin: str, value: Any, why: str) -> None:
        """Record a key that is known but not used, for ``explain()``."""
        if value is not None:
            self.origins[origin] = f"{value!r} is not used: {why}"


def read_source(config: object, strict: bool) -> dict[str, Any]:
    """The dict that holds the rope parameters: of a multimodal config, its text part.

    Raises:
        RopeConfigError: no config; or with ``strict``, rope keys beside a text part that says otherwise.
    """
    source = _as_dict(config)
    for name in TEXT_CONFIGS:
        part = source.get(name)
        if part is None:
            continue
        text = _as_dict(part)
        text.setdefault("model_type", f"{source.get('model_type', '')}_text")
        for key in _ROPE_KEYS:
            if source.get(key) is not None and source[key] != text.get(key):
                raise_or_warn(
                    key, f"got {source[key]!r} beside {name}, which has {text.get(key)!r} and is read", strict
                )
        return text
    return source


def _as_dict(config: object) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    to_dict = getattr(config, "to_dict", None)
    values = getattr(config, "__dict__", None)
    if callable(to_dict) and not isinstance(config, type):
        values = to_dict()
    if not isinstance(values, Mapping) or isinstance(config, type):
        raise RopeConfigError("config", f"got {type(config).__name__}, must be a transformers config or a dict")
    return dict(values)


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
    return nested or _split(source, flat)


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


def tables_of(source: Mapping[str, Any], layer_type: str | None) -> list[Table]:
    """The tables to read for a layer type; for flat parameters it does not matter.

    Raises:
        RopeConfigError: nested parameters and no such layer type, or one that does not rotate.
    """
    layers = layers_of(source)
    if layers is None:
        return [Table(n, source[n]) for n in ("rope_scaling", "rope_parameters") if source.get(n)]
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
