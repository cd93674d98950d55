"""The per-head norms of an attention module that are fused with its rotation.

The module's forward is copied so that it calls :func:`passed` in the place of its norms. The angles carry the norms to
the function that rotates: a call has no state outside of its arguments, so threads may share a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...api.head_norm import HeadNorm
from ...api.sharding import is_distributed
from .angles import Angles
from .namespaces import copied, plain_function

__all__ = ["PASSED", "CallNorms", "NormPlan", "is_hooked", "norms_of", "passed", "passing_methods"]

PASSED = "rope_kernels_passed"
"""The attribute of an attention module that copied methods call in the place of a norm."""

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def passed(module: nn.Module, x: Tensor) -> Tensor:
    """``x``; called in the place of a fused norm."""
    return x


def passing_methods(methods: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Copies of those methods that call one of the norms ``names``; they call :func:`passed` there."""
    renamed = dict.fromkeys(names, PASSED)
    return {
        key: copied(method, inner.__globals__, renamed)
        for key, method in methods.items()
        if (inner := plain_function(method)) is not None and renamed.keys() & set(inner.__code__.co_names)
    }


def is_hooked(norm: nn.Module) -> bool:
    """Whether somebody watches the calls of a norm, or has replaced its forward."""
    return "forward" in norm.__dict__ or any(getattr(norm, name) for name in _HOOKS)


@dataclass(frozen=True)
class NormPlan:
    """How the norms of an attention module are fused, as measured. Weights and eps are read at each call.

    Attributes:
        q: the module's attribute that norms q.
        k: the one that norms k, which may be the same.
        kinds: the classes of both.
        weight: the norms' attribute with the weight; ``None``: no weight.
        eps: the norms' attribute with eps.
        weight_offset: added to the weight.
        after_rope: whether the rotated heads are normed.
        keeps_dtype: whether the norms return the dtype of their input also when the weight has another.
    """

    q: str
    k: str
    kinds: tuple[type, type]
    weight: str | None
    eps: str
    weight_offset: float
    after_rope: bool
    keeps_dtype: bool

    @property
    def names(self) -> tuple[str, str]:
        """The attributes of both norms."""
        return self.q, self.k

    @property
    def summary(self) -> str:
        """For reports: where the norms are, and their weight; without a weight the place makes no difference."""
        if self.weight is None:
            return "no weight"
        return f"{'after' if self.after_rope else 'before'}, {'1 + weight' if self.weight_offset else 'weight'}"

    def norms_of(self, module: nn.Module) -> CallNorms | None:
        """The norms of one call; ``None`` if they were replaced or got hooks since the measurement."""
        q: Any = getattr(module, self.q, None)
        k: Any = getattr(module, self.k, None)
        if (type(q), type(k)) != self.kinds or is_hooked(q) or is_hooked(k):
            return None
        return CallNorms(self, q, k)


class CallNorms:
    """The norms of one call of an attention module, from its forward to the function that rotates.

    Args:
        plan: how they are fused.
        q: the module that norms q.
        k: the module that norms k.
    """

    def __init__(self, plan: NormPlan, q: nn.Module, k: nn.Module) -> None:
        self.plan = plan
        self.q = q
        self.k = k
        self.calls = 0
        self.is_fused = False

    def run(
        self, passing: Callable[..., Any], plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``passing``, a method that leaves its norms to the rotation; ``plain`` if no argument has angles.

        Raises:
            RuntimeError: the method has not rotated q and k in one call, so a norm is missing in its result.
        """
        if not any(_are_angles(value) for value in (*args, *kwargs.values())):
            return plain(*args, **kwargs)
        given = {key: self._carried(value) for key, value in kwargs.items()}
        result = passing(*(self._carried(value) for value in args), **given)
        if self.calls != 1:
            name = type(args[0]).__name__
            raise RuntimeError(
                f"{name} rotates in {self.calls} calls, not in one of q and k; keep its norms (fuse_norms=False)"
            )
        return result

    def _carried(self, value: Any) -> Any:
        if not _are_angles(value):
            return value
        return value.with_norms(self) if isinstance(value, Angles) else tuple(part.with_norms(self) for part in value)

    def fused_with(self, q: Tensor, k: Tensor | None) -> tuple[HeadNorm, HeadNorm] | None:
        """The norms for the fused kernel; ``None`` if it would return another dtype, or is not for these tensors."""
        weights = [None if self.plan.weight is None else getattr(norm, self.plan.weight) for norm in (self.q, self.k)]
        if k is None or not all(weight is None or self._fits(weight, q) for weight in weights):
            return None
        self.calls += 1
        self.is_fused = True
        q_norm, k_norm = (
            HeadNorm(
                weight,
                getattr(norm, self.plan.eps),
                weight_offset=self.plan.weight_offset,
                after_rope=self.plan.after_rope,
            )
            for weight, norm in zip(weights, (self.q, self.k), strict=True)
        )
        return q_norm, k_norm

    def _fits(self, weight: Tensor, q: Tensor) -> bool:
        if is_distributed(weight) or is_distributed(q) or weight.device != q.device:
            return False
        return weight.dtype == q.dtype or (self.plan.keeps_dtype and weight.dtype in _WEIGHT_DTYPES)

    def apart(self, pair: Sequence[Tensor], after_rope: bool) -> Sequence[Tensor]:
        """q and k, normed by the modules themselves if this is their place; else as they are."""
        if after_rope != self.plan.after_rope:
            return pair
        self.calls += 1
        return self.q(pair[0]), self.k(pair[1])


def _are_angles(value: Any) -> bool:
    """Whether an argument is what a patched rotary embedding returns."""
    if type(value) is tuple:
        return len(value) == 2 and isinstance(value[0], Angles) and isinstance(value[1], Angles)
    return isinstance(value, Angles)


def norms_of(tables: Sequence[Any]) -> CallNorms | None:
    """The norms that a table carries."""
    return next((table.norms for table in tables if isinstance(table, Angles) and table.norms is not None), None)
