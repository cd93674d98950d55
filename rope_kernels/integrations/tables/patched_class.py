"""Gives patched modules and attention processors a subclass of their own class, whose methods call the kernels.

The subclass serves every way in which they are copied: pickle, deepcopy, another process, DataParallel's replicas.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from .binding import binding_of

__all__ = ["own_class", "patch_object", "replaced_by_others", "unpatch_object"]

Method = Callable[..., Any]

_IS_PATCHED = "rope_kernels_patched"  # of an object while it is patched: its class may stay below another (FSDP2's)
_BASE = "rope_kernels_base"  # of a patched class, the class that it was made of
_OWN_METHOD = "rope_kernels_own_method"  # of a method of a patched class, the one that it replaces


class _Patched:
    """What the subclasses have in common."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the object as its own class, and patch that class where it is loaded."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _patched_again, (own_class(type(self)),), *reduced[2:]


def own_class(cls: type) -> type:
    """The class that an object has without the patch, whether it is patched or not."""
    return next((vars(c)[_BASE] for c in cls.__mro__ if _BASE in vars(c)), cls)


def patch_object(thing: Any, methods: Mapping[str, Method]) -> None:
    """Make a module or a processor call ``methods``."""
    cls = _class_for(type(thing), methods)
    if not isinstance(thing, cls):
        thing.__class__ = cls
    thing.__dict__[_IS_PATCHED] = True
    _rebind(thing, own_class(cls), cls)


def unpatch_object(thing: Any) -> None:
    """Undo :func:`patch_object`, whatever others have put over it or onto the object since."""
    own = own_class(type(thing))
    if own is type(thing):
        return
    thing.__dict__.pop(_IS_PATCHED, None)
    _rebind(thing, own, own)
    if _BASE in vars(type(thing)):
        thing.__class__ = own


def replaced_by_others(thing: Any, methods: Mapping[str, Method]) -> str | None:
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


def _class_for(cls: type, methods: Mapping[str, Method]) -> type:
    """The patched class: the one in ``cls``, one that another object has already, or a new one."""
    made = next((c for c in [*cls.__mro__, *cls.__subclasses__()] if _BASE in vars(c)), None)
    if made is None:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, _BASE: cls}
        made = type(cls.__name__, (_Patched, cls), names)
    own = vars(made)[_BASE]
    for name, method in methods.items():
        setattr(made, name, _while_patched(getattr(own, name), method))
    return made


def _while_patched(own: Method, patched: Method) -> Method:
    @functools.wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (patched if _IS_PATCHED in self.__dict__ else own)(self, *args, **kwargs)

    setattr(method, _OWN_METHOD, own)
    return method


def _patched_again(own: type) -> Any:
    """An object without state, for pickle and copies; its class calls the kernels in this process, too."""
    subclasses: list[type] = own.__subclasses__()
    known = any(_BASE in vars(made) for made in subclasses)
    cls: Any = _class_for(own, {} if known else binding_of(own).methods)
    return cls.__new__(cls)
