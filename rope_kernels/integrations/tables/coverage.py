"""Lists the model files of diffusers or timm whose rotation can be patched, and why others cannot be."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..transformers.coverage import FileCoverage
from ..transformers.namespaces import global_names, plain_function
from .binding import Binding, binding_of
from .functions import is_named_for_it
from .patching import NOTHING

__all__ = ["LIBRARIES", "coverage", "model_files"]

LIBRARIES = {"diffusers": "models/transformers", "timm": "models"}
"""The folder of the model files, by library."""

# A file may rotate if it has such a name. Names decide nothing else.
_NAMED_FOR_IT = re.compile(r"(?<![a-z])rope|rotary|freqs_cis", re.I)


def model_files(library: str) -> dict[str, str]:
    """The modules of the library's model files that are named for a rotation, by the file's name.

    Raises:
        ImportError: the library is not installed.
    """
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{library} is not installed")
    folder = LIBRARIES[library]
    files = sorted((Path(spec.submodule_search_locations[0]) / folder).glob("*.py"))
    named = [path.stem for path in files if path.stem[0] != "_" and _NAMED_FOR_IT.search(path.read_text("utf-8"))]
    return {name: f"{library}.{folder.replace('/', '.')}.{name}" for name in named}


def coverage(library: str, advance: Callable[[], object] = lambda: None) -> list[FileCoverage]:
    """Probe every model file of the library that is named for a rotation.

    Args:
        library: "diffusers" or "timm".
        advance: called after each file.

    Raises:
        ImportError: the library is not installed.
    """
    found, bindings = [], dict[type, Binding]()
    for name, module in model_files(library).items():
        found.append(_probe(name, module, bindings))
        advance()
    return found


def _probe(name: str, module: str, bindings: dict[type, Binding]) -> FileCoverage:
    try:
        code = importlib.import_module(module)
    except Exception as error:  # an optional package of that one model
        return FileCoverage(name, (), (f"it cannot be imported: {error}",))
    conventions: dict[str, None] = {}
    reasons: dict[str, None] = {}
    for cls in _reached(code):
        if cls not in bindings:
            bindings[cls] = binding_of(cls)
        conventions.update(dict.fromkeys(bindings[cls].conventions))
        reasons.update(dict.fromkeys(f"{function}: {why}" for function, why in bindings[cls].reasons.items()))
    if not conventions and not reasons:
        reasons[NOTHING] = None
    return FileCoverage(name, tuple(conventions), tuple(reasons))


def _reached(code: types.ModuleType) -> list[type]:
    """The classes of a file, and those that their methods name, also through functions: blocks, processors."""
    package = code.__name__.partition(".")[0]
    todo: list[Any] = [c for c in vars(code).values() if inspect.isclass(c) and c.__module__ == code.__name__]
    seen = dict.fromkeys(todo)
    while todo:
        for value in _named_by(todo.pop()):
            if value.__module__.partition(".")[0] == package and value not in seen:
                seen[value] = None
                todo.append(value)
    return [value for value in seen if inspect.isclass(value)]


def _named_by(thing: Any) -> Iterator[Any]:
    """The classes and functions that a class or function names."""
    values = [v for base in thing.__mro__ for v in vars(base).values()] if inspect.isclass(thing) else [thing]
    for value in values:
        yield from _classes_in(value)
        function = plain_function(value)
        if function is None or is_named_for_it(function.__name__):
            continue
        yield from (type(default) for default in function.__defaults__ or ())
        for name in global_names(function):
            named = function.__globals__.get(name)
            yield from _classes_in(named)
            if isinstance(named, types.FunctionType):
                yield named


def _classes_in(value: Any) -> Iterator[type]:
    values = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else [value]
    yield from (held for held in values if inspect.isclass(held))
