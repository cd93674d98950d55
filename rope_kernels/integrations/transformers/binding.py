"""Finds the methods of a module class that call apply functions, and copies them to call our kernels."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .conventions import Convention
from .namespaces import callers, copied, copied_namespace, global_names, plain_function
from .probing import probe_function
from .rotating import replacement

__all__ = ["Binder", "Binding", "ModelingFile"]

_CPU = torch.device("cpu")
_ROTATES = re.compile("apply_rotary|apply_rope")


class ModelingFile:
    """The apply functions of a modeling file, each measured once.

    Args:
        code: the imported file.
        device: where the model is, for functions that only run there.
    """

    def __init__(self, code: types.ModuleType, device: torch.device) -> None:
        self.code = code
        functions = {k: v for k, v in vars(code).items() if isinstance(v, (types.FunctionType, nn.Module))}
        measured = {name: probe_function(value, device) for name, value in functions.items()}
        self.conventions = {name: value for name, value in measured.items() if isinstance(value, Convention)}
        self.relays = {
            name: self._called_by(name) & self.conventions.keys() for name in callers(code, self.conventions.keys())
        }
        # A function that only calls a replaced one needs no convention of its own.
        self.reasons = {
            name: value for name, value in measured.items() if isinstance(value, str) and name not in self.relays
        }

    @cached_property
    def namespace(self) -> dict[str, Any]:
        """The file's globals, with apply functions that call our kernels."""
        own = vars(self.code)
        return copied_namespace(self.code, {name: replacement(own[name], c) for name, c in self.conventions.items()})

    def _called_by(self, relay: str) -> set[str]:
        inner = plain_function(vars(self.code)[relay])
        return set() if inner is None else global_names(inner)


@dataclass
class Binding:
    """How a module class is bound to the kernels.

    Attributes:
        methods: by name, copies of methods that call our kernels.
        conventions: by name, those of the apply functions that these methods call.
        reasons: by name, why other apply functions cannot be replaced.
    """

    methods: dict[str, Any] = field(default_factory=dict)
    conventions: dict[str, Convention] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def called(self) -> bool:
        """Whether the class calls any apply function."""
        return bool(self.methods or self.reasons)


class Binder:
    """Bindings by class; each modeling file is measured once.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self._device = device
        self._files: dict[str, ModelingFile] = {}
        self._bindings: dict[type, Binding] = {}

    def file(self, code: types.ModuleType) -> ModelingFile:
        """The measured apply functions of a modeling file."""
        if code.__name__ not in self._files:
            self._files[code.__name__] = ModelingFile(code, self._device)
        return self._files[code.__name__]

    def binding_of(self, cls: type) -> Binding:
        """The binding of a class."""
        if cls not in self._bindings:
            self._bindings[cls] = self._bind(cls)
        return self._bindings[cls]

    def _bind(self, cls: type) -> Binding:
        binding = Binding()
        for name, function in _methods(cls):
            inner = plain_function(function)
            code = sys.modules.get(inner.__module__) if inner is not None else None
            if inner is None or code is None or vars(code) is not inner.__globals__ or _is_torch(code):
                continue
            file, used = self.file(code), global_names(inner)
            called = {key for key in used if key in file.conventions}
            called |= {key for relay in used & file.relays.keys() for key in file.relays[relay]}
            binding.reasons.update({key: file.reasons[key] for key in sorted(used & file.reasons.keys())})
            binding.conventions.update({key: file.conventions[key] for key in sorted(called)})
            if called or used & file.relays.keys():
                binding.methods[name] = copied(function, file.namespace)
        if not binding.called:
            # Only for the report: a rotation without a table cannot be replaced.
            rotating = [name for name in vars(cls) if _ROTATES.search(name)]
            binding.reasons.update(dict.fromkeys(rotating, "it rotates inside this method, without a cos/sin table"))
        return binding


def _is_torch(code: types.ModuleType) -> bool:
    return code.__name__.partition(".")[0] == "torch"


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods of a module class and its bases, without overridden ones."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module:
            return
        for name, function in vars(base).items():
            if name not in seen and isinstance(function, types.FunctionType):
                seen.add(name)
                yield name, function
