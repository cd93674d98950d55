"""Gradients of a rotation in place, which behaves as torch's own operators in place do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import autograd, operators
from .operators import Arguments

__all__ = ["rotate_recorded_"]

_increment_version = torch._C._increment_version
_below_autograd = torch._C._AutoDispatchBelowAutograd


def rotate_recorded_(q: Tensor, k: Tensor | None, args: Arguments) -> None:
    """Rotate q and k in place so that autograd, forward mode and transforms see it.

    Raises:
        RuntimeError: q or k is a leaf that requires a gradient, or a view of one; nothing has been written.
    """
    if torch.compiler.is_compiling():
        _copy(q, k, args)
        return
    for name, x in zip("qk", (q, k), strict=True):
        if x is not None:
            _refuse_leaf(name, x)
    is_seen = autograd.is_transformed() or autograd.differentiates_positions(args.positions)
    if k is None or is_seen or q.requires_grad == k.requires_grad:
        _record(q, k, args, is_seen)
    else:  # autograd would take both for results that need a gradient
        _record(q, None, args, False)
        _record(k, None, args, False)


def _record(q: Tensor, k: Tensor | None, args: Arguments, is_seen: bool) -> None:
    """``is_seen``: more than reverse mode to q and k must see it."""
    # Only torch's own operators may write to a view whose base is recorded.
    if is_seen or q._is_view() or (k is not None and k._is_view()):
        _copy(q, k, args)
    elif q.requires_grad:
        _InPlace.apply(q, k, args)
    else:
        _write(q, k, args)
        _increment_version([q] if k is None else [q, k])


def _refuse_leaf(name: str, x: Tensor) -> None:
    base = x._base if x._is_view() else x
    if torch.is_grad_enabled() and base is not None and base.is_leaf and base.requires_grad:
        what = "is a leaf" if base is x else "is a view of a leaf"
        raise RuntimeError(f"{name}: {what} that requires a gradient, which cannot be written in place; use apply_rope")


def _copy(q: Tensor, k: Tensor | None, args: Arguments) -> None:
    given = q, k
    if autograd.differentiates_positions(args.positions):  # the derivative needs what is overwritten
        given = q.clone(), None if k is None else k.clone()
    for x, y in zip((q, k), autograd.rotate(*given, args), strict=True):
        if x is not None and y is not None:
            x.copy_(y)


def _write(q: Tensor, k: Tensor | None, args: Arguments) -> None:
    with _below_autograd():
        operators.rotate_(q, k, *args)


class _InPlace(torch.autograd.Function):
    """Of tensors that all need a gradient; the backward is that of the rotation out of place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
        autograd.save_rotation(ctx, k, args)
        ctx.set_materialize_grads(False)
        _write(q, k, args)
        ctx.mark_dirty(*[x for x in (q, k) if x is not None])  # raises their version counters too
        return q, k

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *autograd.adjoint_gradients(ctx, *grads), None
