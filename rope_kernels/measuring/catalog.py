"""Loads a model config for the command line: a file, a model directory or a shipped config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """The config.json at a path, the one in a model directory, or the shipped config of that name.

    Raises:
        SourceError: there is no such file, it cannot be read, or it holds no JSON object.
    """
    path = Path(source)
    if not path.exists():
        name = source.removesuffix(".json")
        if name in names():
            return shipped(name)
        raise SourceError(f"{source}: no such file or directory, and no shipped config; those are {', '.join(names())}")
    if path.is_dir():
        path = path / "config.json"
        if not path.exists():
            raise SourceError(f"{source}: the directory holds no config.json")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    return _parse(text, str(path))


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
