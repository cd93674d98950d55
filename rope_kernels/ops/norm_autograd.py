"""Gradients and ``torch.func`` transforms of ``rotate_norm``: of q, of k and of both weights.

Reverse mode runs the operator ``rotate_norm_backward``. It needs q and k as they were, and saves the tensors of the
caller. A second derivative, transforms and derivatives of positions are in torch's own operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import current_override, use_backend
from ..backends.angles import copied_tokens
from ..core.layouts import from_tokens_first, tokens_first
from ..core.norms import Norm, rotate_normed
from ..core.pairs import rotate_pairs
from . import autograd, constants, norm_operators, operators
from .norm_operators import Weights
from .operators import Arguments

__all__ = ["rotate_norm"]


def rotate_norm(q: Tensor, k: Tensor | None, args: Arguments, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """``rope_kernels::rotate_norm``, differentiable in every mode. Without k, the second result is ``None``."""
    if autograd.is_transformed() or autograd.differentiates_positions(args.positions):
        q_out, k_out = _composed(q, k, args, weights)
    else:
        q_out, k_out = norm_operators.rotate_norm(q, k, *args, *weights)
    return q_out, None if k is None else k_out


def _composed(q: Tensor, k: Tensor | None, args: Arguments, weights: Weights) -> tuple[Tensor, Tensor]:
    """The same in torch's own operations, which every transform and every derivative supports."""
    operation = constants.parsed(args.text)
    rotation, layout = operation.spec.rotation, operation.layout
    turn = autograd.turns(q, args)
    wide = tokens_first(q, layout)
    copied = copied_tokens(wide.shape[0], wide.shape[1], q.device, operators.inputs_of(args, operation))

    def one(x: Tensor, norm: Norm | None, weight: Tensor | None) -> Tensor:
        x = tokens_first(x, layout)
        if norm is None:
            y = rotate_pairs(x, (turn[0], turn[0]), (turn[1], turn[1]), rotation, False)
        else:
            y = rotate_normed(x, turn, rotation, norm, weight).to(x.dtype)
        return from_tokens_first(y if copied is None else torch.where(copied.unsqueeze(2), x, y), layout)

    q_out = one(q, operation.q_norm, weights.q)
    return q_out, q.new_empty(0) if k is None else one(k, operation.k_norm, weights.k)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, *rest = inputs
    count = len(Arguments._fields)
    args, weights = Arguments(*rest[:count]), Weights(*rest[count:])
    ctx.save_for_backward(*map(autograd.savable, (q, k, *args[:-1], *weights)))
    ctx.text = args.text
    ctx.backend = current_override()
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, *index, q_weight, k_weight = ctx.saved_tensors
    args, weights = Arguments._make((*index, ctx.text)), Weights(q_weight, k_weight)
    grads = grad_q, None if k is None else grad_k
    if torch.compiler.is_compiling() or ctx.backend == current_override():
        made = _gradients(grads, q, k, args, weights)
    else:
        with use_backend(ctx.backend):
            made = _gradients(grads, q, k, args, weights)
    return *made[:2], *(None,) * len(Arguments._fields), *made[2:]


def _gradients(
    grads: tuple[Tensor | None, Tensor | None], q: Tensor, k: Tensor | None, args: Arguments, weights: Weights
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, q's weight and k's weight; ``None`` where there is none."""
    if grads[0] is None and grads[1] is None:
        return None, None, None, None
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable_gradients(grads, q, k, args, weights)
    given = [None if g is None else autograd.with_unit_stride(g) for g in grads]
    made = norm_operators.rotate_norm_backward(*given, q, k, *args, *weights)
    operation = constants.parsed(args.text)
    has_q, has_k = grads[0] is not None, grads[1] is not None
    needed = (
        has_q, has_k,
        has_q and weights.q is not None and operation.q_norm is not None,
        has_k and weights.k is not None and operation.k_norm is not None,
    )  # fmt: skip
    return tuple(x if is_needed else None for x, is_needed in zip(made, needed, strict=True))


def _differentiable_gradients(
    grads: tuple[Tensor | None, Tensor | None], q: Tensor, k: Tensor | None, args: Arguments, weights: Weights
) -> tuple[Tensor | None, ...]:
    """For a second derivative: of what is composed of torch's own operations."""
    inputs = (q, k, *weights)
    outputs = _composed(q, k, args, weights)
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    made = iter(torch.autograd.grad(
        [y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
    ))  # fmt: skip
    return tuple(next(made) if x is not None and x.requires_grad else None for x in inputs)


torch.library.register_autograd("rope_kernels::rotate_norm", _backward, setup_context=_setup, lib=operators.LIBRARY)
