"""Patches an object by a subclass of its own class, whose methods call the kernels, and takes the patch back.

What sits on the class serves every way in which an object is copied: pickle, deepcopy, another process, DataParallel's
replicas. A function on the instance does not: it belongs to one object, and others (hooks of accelerate, fusions of an
engine) put theirs in the same place.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "IS_PATCHED",
    "enter",
    "known_subclass",
    "leave",
    "own_class",
    "replaced_by_others",
    "replaces",
    "subclass_of",
]

# An attribute of an object while it is patched. Methods ask for it at each call: their class may stay below another
# (FSDP2's), and one of them, bound to the object, in somebody's hook.
IS_PATCHED = "rope_kernels_patched"
_BASE = "rope_kernels_base"  # of a patched class, the class that it was made of
_OWN_METHOD = "rope_kernels_own_method"  # of a method of a patched class, the one that it replaces


def own_class(cls: type) -> type:
    """The class that an object has without the patch, whether it is patched or not."""
    return next((vars(c)[_BASE] for c in cls.__mro__ if _BASE in vars(c)), cls)


def known_subclass(own: type) -> type | None:
    """The patched class of a class, if there is one."""
    subclasses: list[type] = own.__subclasses__()
    return next((made for made in subclasses if _BASE in vars(made)), None)


def subclass_of(cls: type, mixin: type, **attributes: Any) -> type:
    """The patched class: the one in ``cls``, one that another object has already, or a new one with ``attributes``."""
    made = next((c for c in cls.__mro__ if _BASE in vars(c)), None) or known_subclass(cls)
    if made is None:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, _BASE: cls}
        made = type(cls.__name__, (mixin, cls), names | attributes)
    return made


def replaces(method: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """``method``, marked as what a patched class has in the place of ``own``."""
    setattr(method, _OWN_METHOD, own)
    return method


def enter(thing: Any, cls: type, **state: Any) -> None:
    """Patch an object by a patched class of its own, with attributes that it has while it is patched."""
    if not isinstance(thing, cls):
        thing.__class__ = cls
    thing.__dict__.update({IS_PATCHED: True, **state})
    _rebind(thing, own_class(cls), cls)


def leave(thing: Any, state: Iterable[str] = ()) -> None:
    """Undo :func:`enter`, whatever others have put over it or onto the object since."""
    own = own_class(type(thing))
    if own is type(thing):
        return
    for name in (IS_PATCHED, *state):
        thing.__dict__.pop(name, None)
    _rebind(thing, own, own)
    if _BASE in vars(type(thing)):
        thing.__class__ = own


def replaced_by_others(thing: Any, methods: Iterable[str]) -> str | None:
    """Why others' functions on the object forbid a patch: the class's own would no longer be called.

    Hooks that keep the wrapped method on the object, as accelerate's do, are no reason: they call ours.
    """
    own, held = own_class(type(thing)), thing.__dict__
    kept = {_bound_name(thing, value, own) for value in held.values()}
    for name in methods:
        if name in held and name not in kept:
            value = held[name]
            by = f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__name__)}"
            return f"{by} has replaced {name} on this module; patch the model before, or remove that"
    return None


def _rebind(thing: Any, own: type, cls: type) -> None:
    """Take from ``cls`` the methods of ``own`` that others keep on the object: accelerate's ``_old_forward``."""
    for key, value in list(thing.__dict__.items()):
        name = _bound_name(thing, value, own)
        if name is not None:
            thing.__dict__[key] = types.MethodType(getattr(cls, name), thing)


def _bound_name(thing: Any, value: object, own: type) -> str | None:
    """Which method of ``own`` a value is, patched or not, bound to the object; ``None`` if it is something else."""
    if not isinstance(value, types.MethodType) or value.__self__ is not thing:
        return None
    function = getattr(value.__func__, _OWN_METHOD, value.__func__)
    name: str = getattr(function, "__name__", "")
    return name if getattr(own, name, None) is function else None
