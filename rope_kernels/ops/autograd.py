"""How gradients and transforms go through the operators: backward is the adjoint rotation, by the same kernel.

Three entry points, cheapest first: without a gradient, the operator itself; in eager reverse mode, a ``ctx``-style
Function; under ``torch.func`` and forward mode, the transformable Function. In a traced graph the operator's own
registration does the work. Only positions and small index tensors are saved.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ..backends import current_override, native, use_backend
from ..core.layouts import LAYOUTS, from_tokens_first, tokens_first
from ..core.pairs import pairs, rotate_pairs, unit_pairs
from ..core.spec import adjoint, parse_text, text_of
from . import direct, operators
from .operators import Arguments

__all__ = ["is_differentiated", "is_transformed", "needs_gradient", "rotate", "rotate_unchecked"]

_is_grad_enabled = torch.is_grad_enabled
_below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_rotate = operators.rotate._op  # the overload's own call is one more Python frame


def needs_gradient(first: Tensor, second: Tensor | None) -> bool:
    """Whether reverse mode would record a call on these tensors."""
    return _is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is open: any tensor may then carry a tangent."""
    return _transforms_active() or forward_ad._current_level >= 0


def is_differentiated(first: Tensor, second: Tensor | None) -> bool:
    """Whether either of the two above holds. Inlined copies of both: each Python call costs 0.1 us."""
    recorded = _is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))
    return recorded or _transforms_active() or forward_ad._current_level >= 0


def rotate(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    """``rope_kernels::rotate``, differentiable in q and k by whatever is active; no k is ``None`` or an empty one."""
    if torch.compiler.is_compiling():
        return _composed(q, k, args) if is_transformed() else operators.rotate(q, k, *args)
    return _rotate_eagerly(q, k, args)


def rotate_unchecked(
    q: Tensor, k: Tensor | None, positions: Tensor | None, text: str
) -> tuple[Tensor, Tensor | None] | None:
    """The rotation of arguments that nobody has checked; ``None`` where it cannot be done, with nothing written.

    The native CPU kernel checks its own arguments, so a call that surely reaches it pays for no check in Python. Not
    for frequencies that depend on a length, and not while ``torch.compile`` traces.
    """
    if not _reaches_native(q, k, positions):
        return None
    try:
        q_out, k_out = _rotate_eagerly(q, k, Arguments(positions, None, None, None, None, text))
    except Exception:
        return None
    return q_out, None if k is None else k_out


def _reaches_native(q: Tensor, k: Tensor | None, positions: Tensor | None) -> bool:
    on_cpu = type(q) is Tensor and q.is_cpu and isinstance(positions, Tensor) and positions.is_cpu
    return on_cpu and (k is None or (isinstance(k, Tensor) and k.is_cpu)) and native.thread.is_default


def _rotate_eagerly(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    if is_transformed():
        return _Transformable.apply(q, k, *args)
    if needs_gradient(q, k):
        return _record(q, k, args)
    return _unrecorded(q, k, args)


def _unrecorded(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    """The rotation itself, where nobody records it: by the direct path if that takes the call."""
    positions, offset, seq_len, from_seq_len, cu_seqlens, text = args
    made = None if from_seq_len is not None else direct.rotate(q, k, positions, offset, seq_len, cu_seqlens, text)
    if made is not None:
        return made
    with _below_autograd():
        return _rotate(q, k, *args)


# What torch.compiler.assume_constant_result sets; calling that imports all of Dynamo with the package.
def _parsed(text: str) -> Any:
    return parse_text(text)


_parsed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _composed(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor]:
    """The rotation in a traced ``torch.func`` transform, where the operator would lose a tangent.

    The operator rotates unit pairs into cosines and sines; torch's own operations, which know every transform, do the
    rest.
    """
    operation = _parsed(args.text)
    rotation, layout = operation.spec.rotation, operation.layout
    wide = tokens_first(q, layout)
    unit = unit_pairs(wide.shape[0], wide.shape[1], rotation, q.device)
    forward = text_of(args.text.partition("@")[0], layout, False, operation.unscaled)
    rotated, _ = operators.rotate(from_tokens_first(unit, layout), None, *args[:-1], forward)
    cos, sin = (t.flatten(3) for t in pairs(tokens_first(rotated, layout), rotation, written=True))
    sin = -sin if operation.inverse else sin

    def rotate_one(x: Tensor) -> Tensor:
        y = rotate_pairs(tokens_first(x, layout), (cos, cos), (sin, sin), rotation, operation.inverse)
        return from_tokens_first(y, layout)

    return rotate_one(q), q.new_empty(0) if k is None else rotate_one(k)


def _save(ctx: Any, k: Tensor | None, args: Arguments) -> None:
    ctx.save_for_backward(*args[:-1])
    ctx.text = args.text
    ctx.has_k = k is not None
    ctx.backend = current_override()


def _adjoint(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of q and k. A missing one stays missing: it costs no launch."""
    grad_k = grad_k if ctx.has_k else None
    given = [g for g in (grad_q, grad_k) if g is not None]
    made = iter(_inverse(ctx, *given)) if given else iter(())
    return tuple(None if g is None else next(made) for g in (grad_q, grad_k))


def _inverse(ctx: Any, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    q, k = _rows(first), None if second is None else _rows(second)
    args = _saved(ctx, adjoint(ctx.text))
    if ctx.backend is None or torch.compiler.is_compiling():
        return rotate(q, k, args)
    with use_backend(ctx.backend):
        return rotate(q, k, args)


def _rows(grad: Tensor) -> Tensor:
    return grad if grad.stride(-1) == 1 else grad.contiguous()


def _saved(ctx: Any, text: str) -> Arguments:
    return Arguments._make((*ctx.saved_tensors, text))


class _Eager(torch.autograd.Function):
    """Reverse mode alone, at a third of the cost of the transformable form."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
        _save(ctx, k, args)
        ctx.set_materialize_grads(False)
        return _unrecorded(q, k, args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *_adjoint(ctx, *grads), None


# Function.apply looks for transforms, of which there are none here, for as long as a decode step takes.
_record = super(torch.autograd.Function, _Eager).apply


class _Transformable(torch.autograd.Function):
    """``torch.func`` and forward mode. The rotation is linear, so its tangent is the rotated tangent."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return operators.rotate(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, k, *args = inputs
        _save(ctx, k, Arguments(*args))
        ctx.save_for_forward(*args[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, tangent_q: Any, tangent_k: Any, *others: Any) -> tuple[Tensor, Tensor | None]:
        return rotate(tangent_q, tangent_k, _saved(ctx, ctx.text))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
        if any(dim is not None for dim in in_dims[2:]):
            return _vmap_in_turn(info.batch_size, in_dims, inputs)
        return _vmap_as_heads(info.batch_size, in_dims, inputs)


def _vmap_as_heads(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    """With shared positions a mapped dimension is only more heads."""
    q, k, args = inputs[0], inputs[1], Arguments(*inputs[2:])
    heads = LAYOUTS[parse_text(args.text).layout].heads

    def fold(x: Tensor | None, dim: int | None) -> Tensor | None:
        return x if x is None or dim is None else x.movedim(dim, heads).flatten(heads, heads + 1)

    folded_q, folded_k = fold(q, in_dims[0]), fold(k, in_dims[1])
    assert folded_q is not None
    unfolded = [
        y if dim is None or y is None else y.unflatten(heads, (size, -1))
        for y, dim in zip(rotate(folded_q, folded_k, args), in_dims[:2], strict=True)
    ]
    return tuple(unfolded), tuple(None if dim is None else heads for dim in in_dims[:2])


def _vmap_in_turn(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    outputs = []
    for i in range(size):
        q, k, *args = (x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True))
        outputs.append(rotate(q, k, Arguments(*args)))
    return tuple(torch.stack(side) for side in zip(*outputs, strict=True)), (0, 0)


def _gradients(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    """:func:`_adjoint`, and nothing for the other arguments."""
    return _adjoint(ctx, *grads) + (None,) * len(Arguments._fields)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, k, *args = inputs
    _save(ctx, k, Arguments(*args))


torch.library.register_autograd(
    "rope_kernels::rotate", _gradients, setup_context=_setup_operator, lib=operators.LIBRARY
)
