"""Copies of a modeling file's namespace and methods, which replace functions for some modules only.

A modeling file calls its apply function by a global name. Replacing it there would affect every model in the process; a
private copy of the namespace affects only the methods that are bound to it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

__all__ = ["callers", "copied", "copied_namespace", "global_names", "plain_function"]

Function = Callable[..., Any]

_PREFIX = "rope_kernels_namespace."


def plain_function(function: Any) -> types.FunctionType | None:
    """The function without its decorators; ``None`` if it is not a Python function."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function if isinstance(function, types.FunctionType) else None


def global_names(function: types.FunctionType) -> set[str]:
    """The global names that a function and the functions inside it use."""

    def inside(code: types.CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from inside(constant)

    return set(inside(function.__code__))


def callers(module: types.ModuleType, names: Collection[str]) -> set[str]:
    """The module's own functions that call one of ``names``, directly or through each other."""
    own = {
        key: global_names(inner)
        for key, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and (inner := plain_function(value)) is not None
    }
    reached: set[str] = set()
    while more := {key for key, used in own.items() if key not in reached and used & (reached | set(names))}:
        reached |= more
    return reached - set(names)


def copied_namespace(module: types.ModuleType, replaced: Mapping[str, Function]) -> dict[str, Any]:
    """A copy of the module's globals with ``replaced`` in them; functions that call those use the copy too.

    The same module always gets the same copy, updated. The copy is in ``sys.modules``, as Dynamo looks a function's
    globals up by the name of their module.
    """
    name = f"{_PREFIX}{module.__name__}"
    values = vars(sys.modules.setdefault(name, types.ModuleType(name)))
    own = vars(module)
    values.update({key: value for key, value in own.items() if key not in ("__name__", "__spec__")})
    values.update(replaced)
    values.update({key: copied(own[key], values) for key in callers(module, replaced.keys())})
    return values


def copied(function: Any, namespace: dict[str, Any], renamed: Mapping[str, str] = types.MappingProxyType({})) -> Any:
    """A copy of the function, and of the function that it decorates, with other globals.

    ``renamed``: names of globals and attributes that the copy of the inner function looks up by another name.
    """
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is None:
        names = tuple(renamed.get(name, name) for name in function.__code__.co_names)
        return _copy(function, function.__code__.replace(co_names=names), namespace, function.__closure__)
    inner = copied(wrapped, namespace, renamed)
    cells = tuple(types.CellType(inner) if _holds(cell, wrapped) else cell for cell in function.__closure__ or ())
    outer = _copy(function, function.__code__, function.__globals__, cells or None)
    outer.__wrapped__ = inner
    return outer


def _copy(
    function: types.FunctionType, code: types.CodeType, namespace: dict[str, Any], closure: tuple[Any, ...] | None
) -> Any:
    made = types.FunctionType(code, namespace, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return made


def _holds(cell: Any, value: Any) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:
        return False
