"""The patched classes of transformers' modules, with angles and fused norms; see :mod:`..subclasses`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..subclasses import IS_PATCHED, enter, known_subclass, leave, own_class, replaces, subclass_of
from .binding import Binder
from .norms import PASSED, NormPlan, passed, passing_methods
from .rotary_plan import RotaryPlan

__all__ = ["leave_norms", "patch_module", "rotary_plan", "unpatch_module"]

Method = Callable[..., Any]

_PLAN, _NORMS = "rope_kernels_plan", "rope_kernels_norms"  # of a module while it is patched
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


def patch_module(module: nn.Module, methods: Mapping[str, Method], plan: RotaryPlan | None) -> None:
    """Make the module call ``methods``, and for a rotary embedding return the angles of ``plan``."""
    enter(module, _class_for(type(module), methods, plan is not None), **{_PLAN: plan})


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
    leave(module, (_PLAN, _NORMS))


def _class_for(cls: type, methods: Mapping[str, Method], is_rotary: bool) -> type:
    made: Any = subclass_of(cls, _Patched, **{PASSED: passed, _PASSING: {}, _NORMS: None})
    own: Any = own_class(made)
    for name, method in methods.items():
        setattr(made, name, _while_patched(name, getattr(own, name), method))
    if is_rotary:
        made.forward = _returning_angles(own.forward)
    return cast(type, made)


def _pass_norms(cls: type, methods: Mapping[str, Method], names: tuple[str, str]) -> None:
    getattr(cls, _PASSING)[names] = passing_methods(methods, names)


def _while_patched(name: str, own: Method, patched: Method) -> Method:
    @functools.wraps(own)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self, IS_PATCHED, False):
            return own(self, *args, **kwargs)
        plan: NormPlan | None = getattr(self, _NORMS, None)
        passing = None if plan is None else getattr(self, _PASSING)[plan.names].get(name)
        norms = None if plan is None else plan.norms_of(self)
        if passing is None or norms is None:
            return patched(self, *args, **kwargs)
        return norms.run(passing, patched, (self, *args), kwargs)

    return replaces(method, own)


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

    return replaces(forward, own)


def _patched_again(own: type, is_rotary: bool, norms: tuple[str, str] | None = None) -> nn.Module:
    """A module without state, for pickle and copies; its class calls our kernels in this process, too."""
    known = known_subclass(own)
    missing = known is None or (norms is not None and norms not in getattr(known, _PASSING))
    methods = Binder().binding_of(own).methods if missing else {}
    cls: Any = _class_for(own, {} if known else methods, is_rotary)
    if missing and norms is not None:
        _pass_norms(cls, methods, norms)
    return cast(nn.Module, cls.__new__(cls))
