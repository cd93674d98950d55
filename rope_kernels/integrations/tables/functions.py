"""Finds the functions that rotate in a method, wherever it gets them from, and copies the method to call others.

A method may call a function of its file, one that it defines inside itself, or one that it imports when it runs.
"""

from __future__ import annotations

import dis
import importlib.util
import itertools
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..transformers.namespaces import copied, copied_namespace, global_names

__all__ = ["Place", "is_named_for_it", "places_of", "with_replaced"]

_ROTATES = re.compile("apply.*(rot|rope)|(rot|rope).*apply")
_FUNCTION = "rope_kernels_in_{name}"
_MODULE = "rope_kernels_{name}"

_MAKING = ("MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE")  # the second since Python 3.13
_DEFAULTS = 3  # in the argument of these, that the function has defaults

# Functions that methods define inside themselves, by module and code: each is measured once.
_made: dict[tuple[str, types.CodeType], types.FunctionType] = {}


def is_named_for_it(name: str) -> bool:
    """Whether a name says that a function rotates. What the function does is measured."""
    return _ROTATES.search(name) is not None


@dataclass(frozen=True)
class Place:
    """Where a method gets a function from.

    Attributes:
        name: of the function.
        function: it.
        code: its code, if the method defines it inside itself.
        module: the module from which the method imports it when it runs.
        reason: why it cannot be replaced.
    """

    name: str
    function: types.FunctionType | None
    code: types.CodeType | None = None
    module: types.ModuleType | None = None
    reason: str = ""

    def is_in(self, module: types.ModuleType) -> bool:
        """Whether the function is one of this file, which its own functions call by its name."""
        is_plain = self.code is None and self.module is None and self.function is not None
        return is_plain and self.function.__module__ == module.__name__


def places_of(method: types.FunctionType) -> list[Place]:
    """The functions that a method calls and that are named for a rotation."""
    names = {name: method.__globals__.get(name) for name in sorted(global_names(method)) if is_named_for_it(name)}
    found = [Place(name, value) for name, value in names.items() if isinstance(value, types.FunctionType)]
    found += list(_inside(method))
    return found + list(_imported(method))


def _inside(method: types.FunctionType) -> Iterator[Place]:
    instructions = list(dis.get_instructions(method))
    for place, instruction in enumerate(instructions):
        code = instruction.argval
        if not isinstance(code, types.CodeType) or not is_named_for_it(code.co_name):
            continue
        flags = 0
        for after in itertools.takewhile(lambda i: not i.opname.startswith("STORE"), instructions[place + 1 :]):
            flags |= (after.arg or 0) if after.opname in _MAKING else 0
        if code.co_freevars or flags & _DEFAULTS:
            yield Place(code.co_name, None, code, reason="it has defaults or variables of the method that defines it")
        else:
            function = types.FunctionType(code, method.__globals__, code.co_name)
            yield Place(code.co_name, _made.setdefault((method.__module__, code), function), code)


def _imported(method: types.FunctionType) -> Iterator[Place]:
    module: types.ModuleType | None = None
    instructions = list(dis.get_instructions(method))
    for place, instruction in enumerate(instructions):
        name = str(instruction.argval)
        if instruction.opname == "IMPORT_NAME":
            level = instructions[place - 2].argval  # how many dots there are before the name
            package = method.__globals__.get("__package__") or ""
            module = sys.modules.get(importlib.util.resolve_name("." * level + name, package))
        elif instruction.opname == "IMPORT_FROM" and module is not None and is_named_for_it(name):
            function = getattr(module, name, None)
            if isinstance(function, types.FunctionType):
                yield Place(name, function, module=module)


def with_replaced(method: Any, inner: types.FunctionType, replaced: Mapping[Place, Any]) -> Any:
    """A copy of ``method`` that calls replacements.

    Args:
        method: it, perhaps decorated.
        inner: the function that it decorates, or itself.
        replaced: the functions to call instead, by the places that it gets its own from.
    """
    own = {place.name: function for place, function in replaced.items() if place.code is None and place.module is None}
    module = sys.modules[inner.__module__]
    namespace = copied_namespace(module, own)
    codes, renamed = {}, {}
    for place, function in replaced.items():
        if place.code is not None:
            name = _FUNCTION.format(name=f"{inner.__qualname__}_{place.name}".replace(".", "_"))
            namespace[name] = function
            codes[place.code] = _calling(name, place.code)
        elif place.module is not None:
            renamed.update(_renamed(place, function, module))
    if codes:
        return _with_code(method, inner, codes, namespace)
    return copied(method, namespace, renamed)


def _calling(name: str, code: types.CodeType) -> types.CodeType:
    """The code of a function that calls a global of that name, for the place of ``code``."""
    scope: dict[str, Any] = {}
    exec(f"def {code.co_name}(*args, **kwargs): return {name}(*args, **kwargs)", scope)
    made: types.CodeType = scope[code.co_name].__code__
    return made.replace(co_filename=code.co_filename, co_firstlineno=code.co_firstlineno)


def _with_code(
    method: Any, inner: types.FunctionType, codes: Mapping[types.CodeType, types.CodeType], namespace: dict[str, Any]
) -> Any:
    """A copy of the method that defines other functions inside itself."""
    constants = tuple(codes.get(c, c) if isinstance(c, types.CodeType) else c for c in inner.__code__.co_consts)
    made = copied(inner, namespace)
    made.__code__ = inner.__code__.replace(co_consts=constants)
    if method is inner:
        return made
    outer = copied(method, namespace)
    innermost = outer
    while hasattr(innermost, "__wrapped__"):
        innermost = innermost.__wrapped__
    innermost.__code__ = made.__code__
    return outer


def _renamed(place: Place, function: Any, module: types.ModuleType) -> dict[str, str]:
    """The name of a module with the replacement, for an import inside the method, by the name that it imports."""
    assert place.module is not None
    parent, _, last = place.module.__name__.rpartition(".")
    name = _MODULE.format(name=last)
    other = sys.modules.setdefault(f"{parent}.{name}", types.ModuleType(f"{parent}.{name}"))
    vars(other).update({k: v for k, v in vars(place.module).items() if k not in ("__name__", "__spec__", "__loader__")})
    vars(other)[place.name] = function
    return {last: name}
