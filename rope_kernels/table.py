"""Rotation by a table that the caller brings: transformers' ``apply_rotary_pos_emb`` with a fused kernel behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import autograd, checks, ops
from .backends import current_override, direct, reference, use_backend
from .errors import RopeShapeError
from .rotation import Rotation
from .sharding import is_distributed, refuse_mixed

__all__ = ["apply_rotary_pos_emb"]


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, *, interleaved: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Drop-in for transformers' function of this name: ``q * cos + rotate_half(q) * sin``, rounded once.

    Args:
        q: (batch, heads, seq, head_dim) with ``unsqueeze_dim=1``, (batch, seq, heads, head_dim) with 2, or (tokens,
            heads, head_dim) with a (tokens, rotary_dim) table and 1; float32, float16 or bfloat16.
        k: as q with its own number of heads, or ``None``.
        cos: (batch or 1, seq, rotary_dim) or, for all of the batch, (seq, rotary_dim); any floating dtype. The first
            ``rotary_dim`` channels of a head turn. The two entries of a pair may differ.
        sin: like cos.
        unsqueeze_dim: where cos and sin miss the heads of q; may be negative.
        interleaved: pairs are neighbours, (2 i, 2 i + 1), instead of halves.

    Returns:
        (q, k) rotated. Gradients reach q, k, cos and sin; q and k are kept for backward only if cos or sin needs one.

    Raises:
        RopeShapeError: a tensor does not fit.
    """
    checks.check_flag("interleaved", interleaved)
    pairing = "interleaved" if interleaved else "half"
    if not torch.compiler.is_compiling() and (made := direct.rotate_table(q, k, cos, sin, unsqueeze_dim, pairing)):
        return made
    for name, x in (("q", q), ("cos", cos), ("sin", sin)):
        checks.check_tensor(name, x)
    if is_distributed(q):
        raise RopeShapeError("q: is a DTensor; rotate its local part, q.to_local(), or call apply_rope")
    refuse_mixed(k=k, cos=cos, sin=sin)
    layout = _layout(q, cos, unsqueeze_dim)
    checks.check_qk(q, k, q.shape[-1], layout)
    _check_table(q, cos, sin, layout)
    wide_cos, wide_sin = (t if t.dim() == 3 else t.unsqueeze(0) for t in (cos, sin))
    args = (q, k, wide_cos, wide_sin, cos.shape[-1], pairing, layout, False)
    q_out, k_out = _rotate_table(*args)
    return q_out, None if k is None else k_out


def _layout(q: Tensor, cos: Tensor, unsqueeze_dim: int) -> str:
    if not isinstance(unsqueeze_dim, int):
        raise RopeShapeError(f"unsqueeze_dim: got {unsqueeze_dim!r}, an int is needed")
    dim = unsqueeze_dim if unsqueeze_dim >= 0 else unsqueeze_dim + cos.dim() + 1
    if cos.dim() == 2:
        dim += q.dim() - 3
    layouts = {(4, 1): "bhsd", (4, 2): "bshd", (3, 1): "thd"}
    if cos.dim() not in (2, 3) or (q.dim(), dim) not in layouts or (q.dim() == 3 and cos.dim() == 3):
        raise RopeShapeError(
            f"unsqueeze_dim: got {unsqueeze_dim} with cos {tuple(cos.shape)} and q {tuple(q.shape)}; allowed with a "
            "4-dimensional q are 1 and 2, or 0 and 1 if cos is (seq, rotary_dim); with a 3-dimensional q 1 and a "
            "(tokens, rotary_dim) table"
        )
    return layouts[q.dim(), dim]


def _check_table(q: Tensor, cos: Tensor, sin: Tensor, layout: str) -> None:
    batch_axis, token_axis, _ = checks.LAYOUTS[layout]
    batch, tokens = 1 if batch_axis is None else q.shape[batch_axis], q.shape[token_axis]
    for name, table in (("cos", cos), ("sin", sin)):
        if not table.dtype.is_floating_point:
            raise RopeShapeError(f"{name}: dtype {table.dtype}, must be floating")
        if table.device != q.device:
            raise RopeShapeError(f"{name}: on {table.device}, must be on q's {q.device}")
        fits = table.shape[-2] == tokens and (table.dim() == 2 or table.shape[0] in (1, batch))
        if not fits or table.shape[-1] > q.shape[-1] or table.shape[-1] % 2:
            raise RopeShapeError(
                f"{name}: shape {tuple(table.shape)}, must be ({batch} or 1, {tokens}, rotary_dim) or "
                f"({tokens}, rotary_dim) with an even rotary_dim of at most {q.shape[-1]}"
            )
    if cos.shape != sin.shape or cos.dtype != sin.dtype:
        raise RopeShapeError(f"sin: shape {tuple(sin.shape)} {sin.dtype}, must be cos's {tuple(cos.shape)} {cos.dtype}")


def _rotate_table(*args: Any) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling() and not autograd.is_transformed():
        return ops.rotate_table(*args)
    if autograd.is_transformed():
        return _composed(*args)
    if autograd.needs_gradient(*args[:2]) or autograd.needs_gradient(*args[2:4]):
        return _Table.apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return ops.rotate_table(*args)


def _composed(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, rotary_dim: int, pairing: str, layout: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Under ``torch.func`` and forward mode: torch's own operations, which know every transform."""
    rotation = ops.table_rotation(q.shape[-1], rotary_dim, pairing)

    def turn(x: Tensor) -> Tensor:
        turned = reference.turned_by_table(ops.tokens_first(x, layout), cos, sin, rotation, inverse)
        return ops.from_tokens_first(turned, layout)

    return turn(q), q.new_empty(0) if k is None else turn(k)


def _save(ctx: Any, args: tuple[Any, ...]) -> None:
    q, k, cos, sin, *fixed = args
    table_needs = any(t.requires_grad for t in (cos, sin))
    ctx.save_for_backward(cos, sin, *((q, k) if table_needs else (None, None)))
    ctx.fixed, ctx.has_k, ctx.backend = fixed, k is not None, current_override()


def _gradients(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    cos, sin, q, k = ctx.saved_tensors
    rotary_dim, pairing, layout, inverse = ctx.fixed
    grads = [grad_q, grad_k if ctx.has_k else None]
    given = [g if g.stride(-1) == 1 else g.contiguous() for g in grads if g is not None]
    if not given:
        return (None,) * 8
    second = given[1] if len(given) > 1 else None
    args = (given[0], second, cos, sin, rotary_dim, pairing, layout, not inverse)
    if ctx.backend is None or torch.compiler.is_compiling():
        made = iter(_rotate_table(*args))
    else:
        with use_backend(ctx.backend):
            made = iter(_rotate_table(*args))
    table: tuple[Tensor | None, Tensor | None] = (None, None)
    if q is not None:
        rotation = ops.table_rotation(q.shape[-1], rotary_dim, pairing)
        inputs = [(x, g) for x, g in zip((q, k), grads, strict=True) if x is not None and g is not None]
        wide = [(ops.tokens_first(x, layout), ops.tokens_first(g, layout)) for x, g in inputs]
        table = _table_gradients(wide, cos, sin, rotation, inverse)
    return *(None if g is None else next(made) for g in grads), *table, None, None, None, None


def _table_gradients(
    inputs: list[tuple[Tensor, Tensor]], cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of cos and sin: products of what went in and what comes back, summed over heads."""
    sums: list[list[Tensor]] = []
    for x, grad in inputs:
        x1, x2 = (t.float() for t in reference.pairs(x, rotation, written=inverse))
        g1, g2 = (t.float() for t in reference.pairs(grad, rotation, written=not inverse))
        to_sin = (-g2 * x1, g1 * x2) if inverse else (-g1 * x2, g2 * x1)
        products = (g1 * x1, g2 * x2, *to_sin)
        sums.append([p.sum(2) if cos.shape[0] == x.shape[0] else p.sum((0, 2))[None] for p in products])
    c1, c2, s1, s2 = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
    join = reference.join_pairs
    return join(c1, c2, rotation).to(cos.dtype), join(s1, s2, rotation).to(sin.dtype)


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        _save(ctx, args)
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return ops.rotate_table(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *grads)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save(ctx, inputs)


torch.library.register_autograd(
    "rope_kernels::rotate_table", _gradients, setup_context=_setup_operator, lib=ops.LIBRARY
)
