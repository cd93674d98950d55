"""Which methods of a class call functions that rotate by a table, and their copies that call the kernels."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..transformers.namespaces import callers, global_names, plain_function
from .functions import Place, is_named_for_it, places_of, with_replaced
from .probing import Measured, probe_function
from .rotating import replacement

__all__ = ["Binding", "binding_of"]

_INLINE = "_rotate_half"
_BY_HAND = "it rotates inside this method, by no function of its own"


@dataclass
class Binding:
    """How a class is bound to the kernels.

    Attributes:
        methods: by name, copies of methods that call the kernels.
        measured: by name, what the replaced functions do.
        reasons: by name, why other functions cannot be replaced.
    """

    methods: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def rotates(self) -> bool:
        """Whether the class rotates anything."""
        return bool(self.methods or self.reasons)

    @property
    def conventions(self) -> tuple[str, ...]:
        """The names of the conventions of the replaced functions, each once."""
        return tuple(dict.fromkeys(name for measured in self.measured.values() for name in measured.names))


def binding_of(cls: type) -> Binding:
    """Measure the functions that a class calls, and copy its methods to call the kernels instead."""
    binding = Binding()
    for name, method in _methods(cls):
        inner = plain_function(method)
        module = None if inner is None else sys.modules.get(inner.__module__)
        if inner is None or module is None or vars(module) is not inner.__globals__:
            continue
        if module.__name__.partition(".")[0] == "torch":
            continue
        replaced = _replaced(binding, module, [*places_of(inner), *_relayed(inner, module)])
        if replaced:
            binding.methods[name] = with_replaced(method, inner, replaced)
        elif _INLINE in global_names(inner) and not binding.reasons:
            binding.reasons[name] = _BY_HAND
    return binding


def _relayed(method: types.FunctionType, module: types.ModuleType) -> Iterator[Place]:
    """The functions that a method calls through other functions of its file."""
    named = {name for name, value in vars(module).items() if is_named_for_it(name) and callable(value)}
    relays = {name for name in callers(module, named) if name in global_names(method)}
    for relay in sorted(relays):
        function = plain_function(vars(module)[relay])
        if function is not None:
            yield from _plain_places(function)


def _replaced(binding: Binding, module: types.ModuleType, places: list[Place]) -> dict[Place, Any]:
    replaced: dict[Place, Any] = {}
    for place in places:
        measured = place.reason if place.function is None else probe_function(place.function)
        if isinstance(measured, Measured) and place.function is not None:
            binding.measured[place.name] = measured
            replaced[place] = replacement(place.function, measured.signature, measured.conventions)
            continue
        parts = _plain_places(place.function) if place.function is not None and place.is_in(module) else []
        inside = Binding() if parts else binding
        made = _replaced(inside, module, parts) if parts else {}
        if made and not inside.reasons:
            # A function of parts, each rotated by another function of the file.
            binding.measured.update(inside.measured)
            replaced.update(made)
        else:
            binding.reasons[place.name] = str(measured)
    return replaced


def _plain_places(function: types.FunctionType) -> list[Place]:
    return [place for place in places_of(function) if place.code is None and place.module is None]


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods of a class and its bases, without overridden ones."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module or base is object:
            return
        for name, function in vars(base).items():
            if name not in seen and isinstance(function, types.FunctionType):
                seen.add(name)
                yield name, function
