"""Reads the file that describes a model: JSON or GGUF, in a directory, or by the name of a model in the local cache."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RopeConfigError

__all__ = ["GGUF_TENSORS", "find_file", "read_file"]

GGUF_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of a GGUF file that divide its frequencies."""
_IN_DIRECTORIES = ("config.json", "params.json", "original/params.json", "original/config.json")


def read_file(source: str | os.PathLike[str]) -> tuple[dict[str, Any], Path]:
    """The values of a file, and its path. Those of GGUF are its metadata, and the tensors of :data:`GGUF_TENSORS`.

    Args:
        source: a file, a model directory, or the name of a model in the local cache of huggingface_hub, such as
            "meta-llama/Llama-3.1-8B". Nothing is downloaded.

    Raises:
        RopeConfigError: there is no such file, or it cannot be read; the message begins with ``source``.
    """
    path = find_file(source)
    if path is None:
        raise RopeConfigError(str(source), "no such file or directory, nor a model in the local cache")
    if path.suffix == ".gguf":
        return _read_gguf(path), path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RopeConfigError(str(path), f"cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise RopeConfigError(str(path), f"not valid JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise RopeConfigError(str(path), f"got {type(values).__name__}, must hold one JSON object")
    return dict(values), path


def find_file(source: str | os.PathLike[str]) -> Path | None:
    """The file that ``source`` names; ``None`` if there is none.

    Raises:
        RopeConfigError: a directory without a file that describes a model.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        found = next((path / name for name in _IN_DIRECTORIES if (path / name).is_file()), None)
        found = found or next(iter(sorted(path.glob("*.gguf"))), None)
        if found is None:
            raise RopeConfigError(
                str(source), f"the directory holds none of {', '.join(_IN_DIRECTORIES)} and no GGUF file"
            )
        return found
    return _in_cache(str(source))


def _in_cache(name: str) -> Path | None:
    """A model's file in the cache of huggingface_hub, in the snapshot that its main branch names, or the newest."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    model = cache / f"models--{name.replace('/', '--')}"
    main = model / "refs" / "main"
    snapshots = sorted((model / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    if main.is_file():
        named = model / "snapshots" / main.read_text(encoding="utf-8").strip()
        snapshots = [named, *(path for path in snapshots if path != named)]
    return next((path / file for path in snapshots for file in _IN_DIRECTORIES if (path / file).is_file()), None)


def _read_gguf(path: Path) -> dict[str, Any]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise RopeConfigError(str(path), "a GGUF file needs the package gguf: pip install gguf") from error
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as error:
        raise RopeConfigError(str(path), f"cannot be read: {error}") from error
    # Vocabularies are arrays of many thousands; no array of the metadata describes a rotation.
    values = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "tokenizer.")) and field.types and field.types[0].name != "ARRAY"
    }
    tensors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in GGUF_TENSORS}
    return {**values, **tensors}
