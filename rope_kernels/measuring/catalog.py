"""Loads a model config for the command line: a file, a model directory or a shipped config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..config.files import find_file, read_file
from ..config.validation import nearest
from ..errors import RopeConfigError

if TYPE_CHECKING:  # Python 3.10 has it elsewhere
    from importlib.resources.abc import Traversable

__all__ = ["SourceError", "load", "names", "shipped"]


class SourceError(ValueError):
    """A config could not be read. The message begins with the name or path that was given."""


def names() -> list[str]:
    """Names of the shipped configs, sorted."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def shipped(name: str) -> dict[str, Any]:
    """The shipped config of that name.

    Raises:
        SourceError: no shipped config has that name; the message lists the names.
    """
    if name not in names():
        raise SourceError(f"{name}: no shipped config has that name; they are {', '.join(names())}")
    return _parse((_folder() / f"{name}.json").read_text(encoding="utf-8"), name)


def load(source: str) -> dict[str, Any]:
    """What ``RopeConfig.from_params`` reads by that name, or the shipped config of that name.

    Raises:
        SourceError: there is no such file, it cannot be read, or it holds no JSON object.
    """
    name = source.removesuffix(".json")
    try:
        if find_file(source) is not None:
            return read_file(source)[0]
    except RopeConfigError as error:
        raise SourceError(str(error)) from error
    if name in names():
        return shipped(name)
    raise SourceError(
        f"{source}: no such file or directory, no model in the local cache, and no shipped config; those are "
        f"{', '.join(names())}{nearest(name, names())}"
    )


def _folder() -> Traversable:
    return resources.files(__package__) / "configs"


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(f"{origin}: not valid JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise SourceError(f"{origin}: got {type(value).__name__}, a config.json holds one JSON object")
    return dict(value)
