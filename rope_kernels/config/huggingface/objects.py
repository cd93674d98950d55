"""Turns a config object or dict into a plain dict, including class attributes and properties."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from ...errors import RopeConfigError

__all__ = ["SIZES", "as_dict", "looks_like_rope"]

SIZES = ("hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings")
_LAYERS = ("layer_types", "layers_block_type")
_ROPE = re.compile(
    r"(?<!eu)rope(?!rt)|rotary|rot_emb|ntk|yarn|theta|condense|alibi|pos(ition)?_emb(edding)?s?_type|mscale|(?<![a-z])xpos",
    re.IGNORECASE,
)
# transformers' base classes: their attributes describe the class, not the model.
_BASES = ("transformers.configuration_utils", "transformers.modeling_rope_utils", "builtins")
_OF_THE_CLASS = ("_", "default_", "ignore_keys", "base_model_")


def looks_like_rope(key: str) -> bool:
    """Whether the name of a config key says that it concerns a rotary embedding, or what replaces one."""
    return _ROPE.search(key) is not None


def as_dict(config: object) -> dict[str, Any]:
    """The values of a config by name.

    Raises:
        RopeConfigError: neither a mapping nor a config object.
    """
    if isinstance(config, Mapping):
        return dict(config)
    to_dict = getattr(config, "to_dict", None)
    values = getattr(config, "__dict__", None)
    if callable(to_dict) and not isinstance(config, type):
        values = to_dict()
    if not isinstance(values, Mapping) or isinstance(config, type):
        raise RopeConfigError("config", f"got {type(config).__name__}, must be a transformers config or a dict")
    values = dict(values)
    for alias, name in (getattr(config, "attribute_map", None) or {}).items():
        if alias in SIZES and values.get(alias) is None and values.get(name) is not None:
            values[alias] = values[name]
    for name in _attributes(type(config)):
        if name not in values:
            # A property may raise: the model then has no such value.
            with contextlib.suppress(Exception):
                values[name] = getattr(config, name)
    return values


def _attributes(cls: type) -> list[str]:
    """Class attributes and properties that hold rope values or sizes."""
    found = []
    for base in cls.__mro__:
        if base.__module__.startswith(_BASES):
            continue
        for name, value in vars(base).items():
            data = isinstance(value, (property, int, float, str, list, tuple, Mapping))
            wanted = looks_like_rope(name) or name in SIZES + _LAYERS
            if data and wanted and not name.startswith(_OF_THE_CLASS):
                found.append(name)
    return found
