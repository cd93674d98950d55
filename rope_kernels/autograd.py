"""How gradients and transforms go through the operators: backward is the adjoint rotation, by the same kernel.

Three ways in, because each pays for what the next one needs: the bare operator where nothing is differentiated, a
``ctx``-style function in eager mode, and the transformable function (or, in a traced graph, the operator's own
registration) for the rest. Only positions and small index tensors are saved.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from . import ops
from .backends import current_override, direct, reference, use_backend
from .spec import Call, Spec, adjoint, parse_call, parse_spec, with_call

__all__ = ["is_differentiated", "is_transformed", "needs_gradient", "rotate", "rotate_eagerly"]

_is_grad_enabled = torch.is_grad_enabled
_below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_NUM_OTHER_ARGUMENTS = 6  # beside q and k: five index tensors and the text
_rotate = ops.rotate._op  # the overload's own call is one more Python frame


def needs_gradient(first: Tensor, second: Tensor | None) -> bool:
    """Whether reverse mode would record a call on these tensors."""
    return _is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is open: any tensor may then carry a tangent."""
    return _transforms_active() or forward_ad._current_level >= 0


def is_differentiated(first: Tensor, second: Tensor | None) -> bool:
    """Whether either of the two above holds; said anew, since each call of them costs a decode step 0.1 us."""
    recorded = _is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))
    return recorded or _transforms_active() or forward_ad._current_level >= 0


def rotate(q: Tensor, k: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor | None]:
    """``rope_kernels::rotate``, differentiable in q and k by whatever is active; no k is ``None`` or an empty one."""
    if torch.compiler.is_compiling():
        return _composed(q, k, *rest) if is_transformed() else ops.rotate(q, k, *rest)
    return rotate_eagerly(q, k, *rest)


def rotate_eagerly(q: Tensor, k: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor | None]:
    """The same where nothing is being traced."""
    if is_transformed():
        return _Transformable.apply(q, k, *rest)
    if needs_gradient(q, k):
        return _record(q, k, rest)
    return _unrecorded(q, k, rest)


def _unrecorded(q: Tensor, k: Tensor | None, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """The rotation itself, where nobody records it: straight to the kernel if it is a usual call."""
    positions, offset, seq_len, from_seq_len, cu_seqlens, text = rest
    usual = None if from_seq_len is not None else direct.rotate(q, k, positions, offset, seq_len, cu_seqlens, text)
    if usual is not None:
        return usual
    with _below_autograd():
        return _rotate(q, k, *rest)


def _parsed(text: str) -> tuple[Spec, Call]:
    return parse_spec(text), parse_call(text)


# What torch.compiler.assume_constant_result sets; calling that imports all of Dynamo with the package.
_parsed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _composed(q: Tensor, k: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """In a traced ``torch.func`` transform the operator would lose a tangent: it turns a unit pair into cosines and
    sines, and torch's own operations, which know every transform, do the rest.
    """
    *run_time, text = rest
    spec, call = _parsed(text)
    rotation, layout, wide = spec.rotation, call.layout, ops.tokens_first(q, call.layout)
    unit = reference.unit_pairs(wide.shape[0], wide.shape[1], rotation, q.device)
    forward = with_call(text.partition("@")[0], layout, False, call.unscaled)
    turned, _ = ops.rotate(ops.from_tokens_first(unit, layout), None, *run_time, forward)
    cos, sin = (t.flatten(3) for t in reference.pairs(ops.tokens_first(turned, layout), rotation, written=True))
    sin = -sin if call.inverse else sin

    def turn(x: Tensor) -> Tensor:
        y = reference.turn(ops.tokens_first(x, layout), (cos, cos), (sin, sin), rotation, call.inverse)
        return ops.from_tokens_first(y, layout)

    return turn(q), q.new_empty(0) if k is None else turn(k)


def _save(ctx: Any, k: Tensor | None, rest: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*rest[:-1])
    ctx.spec = rest[-1]
    ctx.has_k = k is not None
    ctx.backend = current_override()


def _adjoint(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of q and k. A missing one stays missing: it costs no launch."""
    grad_k = grad_k if ctx.has_k else None
    given = [g for g in (grad_q, grad_k) if g is not None]
    made = iter(_inverse(ctx, *given)) if given else iter(())
    return tuple(None if g is None else next(made) for g in (grad_q, grad_k))


def _inverse(ctx: Any, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    grads = [g if g is None or g.stride(-1) == 1 else g.contiguous() for g in (first, second)]
    args = (*grads, *ctx.saved_tensors, adjoint(ctx.spec))
    if ctx.backend is None or torch.compiler.is_compiling():
        return rotate(*args)
    with use_backend(ctx.backend):
        return rotate(*args)


class _Eager(torch.autograd.Function):
    """Reverse mode alone: a third of the cost of the transformable form. What is no q or k comes as one tuple."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        _save(ctx, k, rest)
        ctx.set_materialize_grads(False)
        return _unrecorded(q, k, rest)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *_adjoint(ctx, *grads), None


# Function.apply looks for transforms, of which there are none here, for as long as a decode step takes.
_record = super(torch.autograd.Function, _Eager).apply


class _Transformable(torch.autograd.Function):
    """``torch.func`` and forward mode. The rotation is linear, so its tangent is the rotated tangent."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return ops.rotate(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs[1], inputs[2:])
        ctx.save_for_forward(*inputs[2:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _for_all(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, tangent_q: Any, tangent_k: Any, *rest: Any) -> tuple[Tensor, Tensor | None]:
        return rotate(tangent_q, tangent_k, *ctx.saved_tensors, ctx.spec)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
        if any(dim is not None for dim in in_dims[2:]):
            return _vmap_in_turn(info.batch_size, in_dims, args)
        return _vmap_as_heads(info.batch_size, in_dims, args)


def _vmap_as_heads(size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """With shared positions a mapped dimension is only more heads."""
    heads = {"bshd": 2, "bhsd": 1, "thd": 1}[parse_call(args[-1]).layout]

    def fold(x: Tensor | None, dim: int | None) -> Tensor | None:
        return x if x is None or dim is None else x.movedim(dim, heads).flatten(heads, heads + 1)

    folded: list[Any] = [fold(x, dim) for x, dim in zip(args[:2], in_dims[:2], strict=True)]
    outputs = rotate(*folded, *args[2:])
    unfolded = [
        y if dim is None or y is None else y.unflatten(heads, (size, -1))
        for y, dim in zip(outputs, in_dims[:2], strict=True)
    ]
    return tuple(unfolded), tuple(None if dim is None else heads for dim in in_dims[:2])


def _vmap_in_turn(size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    slices = [[a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(size)]
    outputs = [rotate(*one) for one in slices]
    return tuple(torch.stack(side) for side in zip(*outputs, strict=True)), (0, 0)


def _for_all(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    """:func:`_adjoint`, and nothing for the other arguments."""
    return _adjoint(ctx, *grads) + (None,) * _NUM_OTHER_ARGUMENTS


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save(ctx, inputs[1], inputs[2:])


torch.library.register_autograd("rope_kernels::rotate", _for_all, setup_context=_setup_operator, lib=ops.LIBRARY)
