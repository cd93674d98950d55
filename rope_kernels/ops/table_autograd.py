"""Gradients of ``rope_kernels::rotate_table``, the rotation by a caller's table: to q, k, cos and sin."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import current_override, reference, use_backend
from ..core.layouts import from_tokens_first, tokens_first
from ..core.pairs import join_pairs, pairs
from ..core.rotation import Rotation
from . import autograd, operators

__all__ = ["TableArguments", "rotate_table"]


class TableArguments(NamedTuple):
    """The arguments after q and k in the schema of ``rotate_table``.

    Attributes:
        cos: (batch or 1, tokens, rotary_dim), any floating dtype.
        sin: like cos.
        rotary_dim: the first ``rotary_dim`` channels of a head are rotated.
        pairing: one of :data:`rope_kernels.core.rotation.PAIRINGS`.
        layout: of q and k.
        inverse: rotate back (the adjoint).
    """

    cos: Tensor
    sin: Tensor
    rotary_dim: int
    pairing: str
    layout: str
    inverse: bool


def rotate_table(q: Tensor, k: Tensor | None, args: TableArguments) -> tuple[Tensor, Tensor]:
    """``rope_kernels::rotate_table``, differentiable in q, k, cos and sin in every mode."""
    if autograd.is_transformed():
        return _composed(q, k, args)
    if torch.compiler.is_compiling():
        return operators.rotate_table(q, k, *args)
    if autograd.needs_gradient(q, k) or autograd.needs_gradient(args.cos, args.sin):
        return _Table.apply(q, k, *args)
    with torch._C._AutoDispatchBelowAutograd():
        return operators.rotate_table(q, k, *args)


def _composed(q: Tensor, k: Tensor | None, args: TableArguments) -> tuple[Tensor, Tensor]:
    """The rotation under ``torch.func`` and forward mode, in torch's own operations: they support every transform."""
    rotation = operators.table_rotation(q.shape[-1], args.rotary_dim, args.pairing)

    def rotate_one(x: Tensor) -> Tensor:
        wide = tokens_first(x, args.layout)
        rotated = reference.rotated_by_table(wide, args.cos, args.sin, rotation, args.inverse)
        return from_tokens_first(rotated, args.layout)

    return rotate_one(q), q.new_empty(0) if k is None else rotate_one(k)


def _save(ctx: Any, q: Tensor, k: Tensor | None, args: TableArguments) -> None:
    table_needs = args.cos.requires_grad or args.sin.requires_grad
    saved = (args.cos, args.sin, *((q, k) if table_needs else (None, None)))
    ctx.save_for_backward(*map(autograd.savable, saved))
    ctx.fixed, ctx.has_k, ctx.backend = args[2:], k is not None, current_override()


def _gradients(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    cos, sin, q, k = ctx.saved_tensors
    args = TableArguments(cos, sin, *ctx.fixed)
    grads = [grad_q, grad_k if ctx.has_k else None]
    given = [autograd.with_unit_stride(g) for g in grads if g is not None]
    if not given:
        return (None,) * (2 + len(args))
    back = args._replace(inverse=not args.inverse)
    second = given[1] if len(given) > 1 else None
    if torch.compiler.is_compiling() or ctx.backend == current_override():
        made = iter(rotate_table(given[0], second, back))
    else:
        with use_backend(ctx.backend):
            made = iter(rotate_table(given[0], second, back))
    of_table: tuple[Tensor | None, Tensor | None] = (None, None)
    if q is not None:
        rotation = operators.table_rotation(q.shape[-1], args.rotary_dim, args.pairing)
        inputs = [(x, g) for x, g in zip((q, k), grads, strict=True) if x is not None and g is not None]
        wide = [(tokens_first(x, args.layout), tokens_first(g, args.layout)) for x, g in inputs]
        of_table = _table_gradients(wide, cos, sin, rotation, args.inverse)
    return *(None if g is None else next(made) for g in grads), *of_table, None, None, None, None


def _table_gradients(
    inputs: list[tuple[Tensor, Tensor]], cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of cos and sin: products of the inputs and the gradients of the outputs, summed over heads."""
    sums: list[list[Tensor]] = []
    for x, grad in inputs:
        x1, x2 = (t.float() for t in pairs(x, rotation, written=inverse))
        g1, g2 = (t.float() for t in pairs(grad, rotation, written=not inverse))
        to_sin = (-g2 * x1, g1 * x2) if inverse else (-g1 * x2, g2 * x1)
        products = (g1 * x1, g2 * x2, *to_sin)
        sums.append([p.sum(2) if cos.shape[0] == x.shape[0] else p.sum((0, 2))[None] for p in products])
    c1, c2, s1, s2 = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
    return join_pairs(c1, c2, rotation).to(cos.dtype), join_pairs(s1, s2, rotation).to(sin.dtype)


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
        _save(ctx, q, k, TableArguments(*args))
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return operators.rotate_table(q, k, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *grads)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, *args = inputs
    _save(ctx, q, k, TableArguments(*args))


torch.library.register_autograd(
    "rope_kernels::rotate_table", _gradients, setup_context=_setup_operator, lib=operators.LIBRARY
)
