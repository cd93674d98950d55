"""Gives patched modules a subclass of their own class, whose methods call our kernels.

What sits on the class serves every way in which a module is copied: pickle, deepcopy, another process, DataParallel's
replicas. A function on the instance does not: it belongs to one module, and others (hooks of accelerate, fusions of an
engine) put theirs in the same place.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from .binding import Binder
from .norms import PASSED, NormPlan, passed, passing_methods
from .rotary_plan import RotaryPlan

__all__ = ["bound_name", "leave_norms", "own_class", "patch_module", "rotary_plan", "unpatch_module"]

Method = Callable[..., Any]

# Attributes of a module while it is patched. Methods ask for the first at each call: their class may stay below another
# (FSDP2's), and one of them, bound to the module, in somebody's hook.
_IS_PATCHED, _PLAN, _NORMS = "rope_kernels_patched", "rope_kernels_plan", "rope_kernels_norms"
_BASE = "rope_kernels_base"  # of a patched class, the class that it was made of
_OWN_METHOD = "rope_kernels_own_method"  # of a method of a patched class, the one that it replaces
_PASSING = "rope_kernels_passing"  # of a patched class, by the names of fused norms, the methods without these norms


class _Patched(nn.Module):
    """What the subclasses have in common."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the module as its own class, and patch that class where it is loaded."""
        reduced: Any = super().__reduce_ex__(protocol)
        norms: NormPlan | None = self.__dict__.get(_NORMS)
        names = None if norms is None else norms.names
        return _patched_again, (own_class(type(self)), self.__dict__.get(_PLAN) is not None, names), *reduced[2:]

    def _replicate_for_data_parallel(self) -> Any:
        """A replica with lengths of its own: replicas run side by side, on different devices."""
        replica: Any = super()._replicate_for_data_parallel()
        plan = replica.__dict__.get(_PLAN)
        if plan is not None:
            replica.__dict__[_PLAN] = plan.replica()
        return replica


def own_class(cls: type) -> type:
    """The class that a module has without the patch, whether it is patched or not."""
    return next((vars(c)[_BASE] for c in cls.__mro__ if _BASE in vars(c)), cls)


def patch_module(module: nn.Module, methods: Mapping[str, Method], plan: RotaryPlan | None) -> None:
    """Make the module call ``methods``, and for a rotary embedding return the angles of ``plan``."""
    cls = _class_for(type(module), methods, plan is not None)
    if not isinstance(module, cls):
        module.__class__ = cls
    module.__dict__.update({_IS_PATCHED: True, _PLAN: plan})
    _rebind(module, own_class(cls), cls)


def rotary_plan(module: nn.Module) -> RotaryPlan | None:
    """The plan of a patched rotary embedding."""
    plan: RotaryPlan | None = module.__dict__.get(_PLAN)
    return plan


def leave_norms(module: nn.Module, methods: Mapping[str, Method], plan: NormPlan) -> None:
    """Make a patched module, which calls ``methods``, leave its norms to the rotation."""
    _pass_norms(type(module), methods, plan.names)
    module.__dict__[_NORMS] = plan


def unpatch_module(module: nn.Module) -> None:
    """Undo :func:`patch_module`, whatever others have put over it or onto the module since."""
    own = own_class(type(module))
    if own is type(module):
        return
    for name in (_IS_PATCHED, _PLAN, _NORMS):
        module.__dict__.pop(name, None)
    _rebind(module, own, own)
    if _BASE in vars(type(module)):
        module.__class__ = own


def _rebind(module: nn.Module, own: type, cls: type) -> None:
    """Take from ``cls`` the methods of ``own`` that others keep on the module: accelerate's ``_old_forward``."""
    for key, value in list(module.__dict__.items()):
        name = bound_name(module, value, own)
        if name is not None:
            module.__dict__[key] = types.MethodType(getattr(cls, name), module)


def bound_name(module: nn.Module, value: object, own: type) -> str | None:
    """Which method of ``own`` a value is, patched or not, bound to the module; ``None`` if it is something else."""
    if not isinstance(value, types.MethodType) or value.__self__ is not module:
        return None
    function = getattr(value.__func__, _OWN_METHOD, value.__func__)
    name: str = getattr(function, "__name__", "")
    return name if getattr(own, name, None) is function else None


def _class_for(cls: type, methods: Mapping[str, Method], is_rotary: bool) -> type:
    """The patched class: the one in ``cls``, one that another module has already, or a new one."""
    known = [*cls.__mro__, *cls.__subclasses__()]
    made = next((c for c in known if _BASE in vars(c)), None)
    if made is None:
        names: dict[str, Any] = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            _BASE: cls,
            PASSED: passed,
            _PASSING: {},
            _NORMS: None,
        }
        made = type(cls.__name__, (_Patched, cls), names)
    own = vars(made)[_BASE]
    for name, method in methods.items():
        setattr(made, name, _while_patched(name, getattr(own, name), method))
    if is_rotary:
        made.forward = _returning_angles(own.forward)  # type: ignore[attr-defined]  # a class made here
    return made


def _pass_norms(cls: type, methods: Mapping[str, Method], names: tuple[str, str]) -> None:
    getattr(cls, _PASSING)[names] = passing_methods(methods, names)


def _while_patched(name: str, own: Method, patched: Method) -> Method:
    @functools.wraps(own)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self, _IS_PATCHED, False):
            return own(self, *args, **kwargs)
        plan: NormPlan | None = getattr(self, _NORMS, None)
        passing = None if plan is None else getattr(self, _PASSING)[plan.names].get(name)
        norms = None if plan is None else plan.norms_of(self)
        if passing is None or norms is None:
            return patched(self, *args, **kwargs)
        return norms.run(passing, patched, (self, *args), kwargs)

    setattr(method, _OWN_METHOD, own)
    return method


def _returning_angles(own: Method) -> Method:
    """Replaces a rotary embedding's forward. Positions of an unknown shape still get the module's own tables."""

    @functools.wraps(own)
    def forward(self: nn.Module, x: Tensor, position_ids: Tensor | None = None, layer_type: str | None = None) -> Any:
        plan: RotaryPlan | None = getattr(self, _PLAN, None)
        angles = None if plan is None or position_ids is None else plan.angles(x, position_ids, layer_type)
        if angles is not None:
            return angles
        extra = {} if layer_type is None else {"layer_type": layer_type}
        return own(self, x, position_ids=position_ids, **extra)

    setattr(forward, _OWN_METHOD, own)
    return forward


def _patched_again(own: type, is_rotary: bool, norms: tuple[str, str] | None = None) -> nn.Module:
    """A module without state, for pickle and copies; its class calls our kernels in this process, too."""
    subclasses: list[type] = own.__subclasses__()
    known = next((made for made in subclasses if _BASE in vars(made)), None)
    missing = known is None or (norms is not None and norms not in getattr(known, _PASSING))
    methods = Binder().binding_of(own).methods if missing else {}
    cls: Any = _class_for(own, {} if known else methods, is_rotary)
    if missing and norms is not None:
        _pass_norms(cls, methods, norms)
    return cast(nn.Module, cls.__new__(cls))
