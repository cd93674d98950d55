"""The patched classes of modules and attention processors that rotate by tables; see :mod:`..subclasses`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ..subclasses import IS_PATCHED, enter, known_subclass, own_class, replaces, subclass_of
from .binding import binding_of

__all__ = ["patch_object"]

Method = Callable[..., Any]


class _Patched:
    """What the subclasses have in common."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the object as its own class, and patch that class where it is loaded."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _patched_again, (own_class(type(self)),), *reduced[2:]


def patch_object(thing: Any, methods: Mapping[str, Method]) -> None:
    """Make a module or a processor call ``methods``."""
    enter(thing, _class_for(type(thing), methods))


def _class_for(cls: type, methods: Mapping[str, Method]) -> type:
    made = subclass_of(cls, _Patched)
    for name, method in methods.items():
        setattr(made, name, _while_patched(getattr(own_class(made), name), method))
    return made


def _while_patched(own: Method, patched: Method) -> Method:
    @functools.wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (patched if IS_PATCHED in self.__dict__ else own)(self, *args, **kwargs)

    return replaces(method, own)


def _patched_again(own: type) -> Any:
    """An object without state, for pickle and copies; its class calls the kernels in this process, too."""
    cls: Any = _class_for(own, {} if known_subclass(own) else binding_of(own).methods)
    return cls.__new__(cls)
