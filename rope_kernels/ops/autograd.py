"""Gradients and ``torch.func`` transforms of the operators. Backward is the adjoint rotation, by the same kernel.

Three entry points, cheapest first: without a gradient, the operator itself; in eager reverse mode, a ``ctx``-style
Function; under ``torch.func`` and forward mode, the transformable Function. In a traced graph the operator's own
registration does the work. Only positions and small index tensors are saved.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ..backends import choice, current_override, use_backend
from ..core.layouts import LAYOUTS, from_tokens_first, position_axes, tokens_first
from ..core.pairs import pairs, rotate_pairs, unit_pairs
from ..core.spec import adjoint, parse_text, text_of
from . import constants, direct, operators
from .operators import Arguments

__all__ = [
    "adjoint_gradients",
    "differentiates_positions",
    "is_differentiated",
    "is_transformed",
    "needs_gradient",
    "rotate",
    "rotate_unchecked",
    "savable",
    "save_rotation",
    "turns",
    "with_unit_stride",
]

_is_grad_enabled = torch.is_grad_enabled
_is_never_chosen = choice.is_never_chosen
_below_autograd = torch._C._AutoDispatchBelowAutograd
_new_tuple = tuple.__new__  # a named tuple's own constructor takes 0.2 us longer
_transforms_active = torch._C._are_functorch_transforms_active
_is_tracing = torch._C._is_tracing  # of torch.jit.trace
_rotate = operators.rotate._op  # the overload's own call is one more Python frame


def needs_gradient(first: Tensor, second: Tensor | None) -> bool:
    """Whether reverse mode would record a call on these tensors."""
    return _is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is active: any tensor may then carry a tangent."""
    return _transforms_active() or forward_ad._current_level >= 0


def is_differentiated(first: Tensor, second: Tensor | None) -> bool:
    """Whether either of the two above holds. Inlined copies of both: each Python call costs 0.1 us."""
    recorded = _is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))
    return recorded or _transforms_active() or forward_ad._current_level >= 0


def rotate(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    """``rope_kernels::rotate``, differentiable in q and k in every mode. Without k, the second result is ``None`` or
    empty."""
    if not torch.compiler.is_compiling():
        return _rotate_eagerly(q, k, args)
    if is_transformed() or differentiates_positions(args.positions):
        return _composed(q, k, args)
    return operators.rotate(q, k, *args)


def rotate_unchecked(
    q: Tensor, k: Tensor | None, positions: Tensor | None, text: str
) -> tuple[Tensor, Tensor | None] | None:
    """The rotation without checks in Python; ``None``, with nothing written, if the library cannot do the call.

    The library validates its arguments, so a call that runs there needs no check before. Do not call it for frequencies
    that depend on a length, nor while ``torch.compile`` traces.
    """
    # Floating positions are checked: the kernel takes dtypes that the public calls refuse.
    reaches_library = (
        (_is_never_chosen() or choice.runs_in_library())
        and type(q) is Tensor and (k is None or isinstance(k, Tensor)) and isinstance(positions, Tensor)
        and (
            (q.is_cpu and positions.is_cpu and (k is None or k.is_cpu))
            or (q.is_cuda and positions.is_cuda and (k is None or k.is_cuda))
        )
        and not positions.is_floating_point()
    )  # fmt: skip
    if not reaches_library or is_transformed() or _is_tracing():
        return None
    args = _new_tuple(Arguments, (positions, None, None, None, None, text))
    try:
        q_out, k_out = _record_unchecked(q, k, args) if needs_gradient(q, k) else _attempted(q, k, args)
    except _RefusedError:
        return None
    return q_out, None if k is None else k_out


class _RefusedError(Exception):
    """The library cannot do a call. Exceptions of others, as of a hook on saved tensors, are not ours to catch."""


def _attempted(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    try:
        return _unrecorded(q, k, args)
    except Exception as error:
        raise _RefusedError from error


def differentiates_positions(positions: Tensor | None) -> bool:
    """Whether a derivative of floating positions may be needed: under a transform it always may."""
    if positions is None or not positions.is_floating_point():
        return False
    return is_transformed() or (_is_grad_enabled() and positions.requires_grad)


def _rotate_eagerly(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    if differentiates_positions(args.positions):
        return _composed(q, k, args)
    return _rotate_usual(q, k, args)


def _rotate_usual(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    """The rotation where no derivative of the positions is needed."""
    if is_transformed():
        return _Transformable.apply(q, k, *args)
    if _is_tracing():
        return operators.rotate(q, k, *args)
    if needs_gradient(q, k):
        return _record(q, k, args)
    return _unrecorded(q, k, args)


def _unrecorded(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
    """The rotation without autograd: by the fast path if it takes the call, else by the operator."""
    positions, offset, seq_len, from_seq_len, cu_seqlens, text = args
    made = None if from_seq_len is not None else direct.rotate(q, k, positions, offset, seq_len, cu_seqlens, text)
    if made is not None:
        return made
    with _below_autograd():
        return _rotate(q, k, *args)


def _composed(q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor]:
    """The rotation in torch's own operations, which every transform and every derivative supports.

    The operator rotates unit pairs into cosines and sines. It is for traced ``torch.func`` transforms, in which the
    operator would lose a tangent, and for derivatives of floating positions, which no kernel has.
    """
    operation = constants.parsed(args.text)
    rotation, layout = operation.spec.rotation, operation.layout
    cos, sin = turns(q, args)
    sin = -sin if operation.inverse else sin

    def rotate_one(x: Tensor) -> Tensor:
        y = rotate_pairs(tokens_first(x, layout), (cos, cos), (sin, sin), rotation, operation.inverse)
        return from_tokens_first(y, layout)

    return rotate_one(q), q.new_empty(0) if k is None else rotate_one(k)


def turns(q: Tensor, args: Arguments) -> tuple[Tensor, Tensor]:
    """float32 (batch, tokens, 1, pairs) cosines and sines of the forward rotation, with derivatives of positions."""
    operation = constants.parsed(args.text)
    rotation, layout = operation.spec.rotation, operation.layout
    wide = tokens_first(q, layout)
    unit = unit_pairs(wide.shape[0], wide.shape[1], rotation, q.device)
    forward = text_of(args.text.partition("@")[0], layout, False, operation.unscaled)
    fixed = args._replace(positions=None if args.positions is None else args.positions.detach(), text=forward)
    rotated, _ = operators.rotate(from_tokens_first(unit, layout), None, *fixed)
    cos, sin = (t.flatten(3) for t in pairs(tokens_first(rotated, layout), rotation, written=True))
    return _with_derivative(cos, sin, args) if differentiates_positions(args.positions) else (cos, sin)


def _with_derivative(cos: Tensor, sin: Tensor, args: Arguments) -> tuple[Tensor, Tensor]:
    """Cosines and sines rotated by an angle of zero that has all derivatives of the positions."""
    axes = position_axes(args.positions, constants.parsed(args.text).layout)
    assert axes is not None
    inv_freq, axis = constants.inv_freq(args, cos.device), constants.axes(args.text, cos.device)
    zero = (axes - axes.detach()).float()  # (axes, batch or 1, tokens)
    moved = zero[axis] if zero.shape[0] > 1 else zero.expand(axis.shape[0], *zero.shape[1:])
    angle = (moved.permute(1, 2, 0) * inv_freq).unsqueeze(2)
    return cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()


def save_rotation(ctx: Any, k: Tensor | None, args: Arguments) -> None:
    """Keep what the backward of a rotation needs."""
    saved: tuple[Tensor | None, ...] = args[:-1]
    for x in saved:
        if x is not None and x.is_inference():
            saved = tuple(map(savable, saved))
            break
    ctx.save_for_backward(*saved)
    ctx.text = args.text
    ctx.has_k = k is not None
    ctx.backend = current_override()


def savable(x: Tensor | None) -> Tensor | None:
    """``x``, or a copy of it if it is an inference tensor, which autograd does not save."""
    return x.clone() if x is not None and x.is_inference() else x


def adjoint_gradients(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of q and k. A missing one stays ``None`` and costs no launch."""
    grad_k = grad_k if ctx.has_k else None
    given = [g for g in (grad_q, grad_k) if g is not None]
    made = iter(_inverse(ctx, *given)) if given else iter(())
    return tuple(None if g is None else next(made) for g in (grad_q, grad_k))


def _inverse(ctx: Any, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    q, k = with_unit_stride(first), None if second is None else with_unit_stride(second)
    args = _saved(ctx, adjoint(ctx.text))
    if torch.compiler.is_compiling() or ctx.backend == current_override():
        return rotate(q, k, args)
    with use_backend(ctx.backend):
        return rotate(q, k, args)


def with_unit_stride(grad: Tensor) -> Tensor:
    """A gradient whose last stride is 1. ``contiguous()`` leaves the strides of an empty tensor as they are."""
    return grad if grad.stride(-1) == 1 else grad.clone(memory_format=torch.contiguous_format)


def _saved(ctx: Any, text: str) -> Arguments:
    return Arguments._make((*ctx.saved_tensors, text))


class _Eager(torch.autograd.Function):
    """Reverse mode only, at a third of the cost of :class:`_Transformable`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
        save_rotation(ctx, k, args)
        ctx.set_materialize_grads(False)
        return _unrecorded(q, k, args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *adjoint_gradients(ctx, *grads), None


class _Unchecked(_Eager):
    """Raises :class:`_RefusedError` where the library cannot do the call."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, args: Arguments) -> tuple[Tensor, Tensor | None]:
        save_rotation(ctx, k, args)
        ctx.set_materialize_grads(False)
        return _attempted(q, k, args)


# Function.apply checks for transforms, which takes as long as a decode step. There are none here.
_record = super(torch.autograd.Function, _Eager).apply
_record_unchecked = super(torch.autograd.Function, _Unchecked).apply


class _Transformable(torch.autograd.Function):
    """``torch.func`` and forward mode. The rotation is linear, so its tangent is the rotated tangent."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return operators.rotate(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, k, *args = inputs
        save_rotation(ctx, k, Arguments(*args))
        ctx.save_for_forward(*map(savable, args[:-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, tangent_q: Any, tangent_k: Any, *others: Any) -> tuple[Tensor, Tensor | None]:
        return rotate(tangent_q, tangent_k, _saved(ctx, ctx.text))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
        if any(dim is not None for dim in in_dims[2:]):
            return _vmap_one_by_one(info.batch_size, in_dims, inputs)
        return _vmap_as_heads(info.batch_size, in_dims, inputs)


def _vmap_as_heads(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    """With shared positions, a mapped dimension of q and k becomes more heads."""
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


def _vmap_one_by_one(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    outputs: list[tuple[Any, Any]] = []
    for i in range(size):
        q, k, *args = (x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True))
        outputs.append(rotate(q, k, Arguments(*args)))
    q_out = torch.stack([one for one, _ in outputs])
    if inputs[1] is None:
        return (q_out, q_out.new_empty(0)), (0, None)
    return (q_out, torch.stack([one for _, one in outputs])), (0, 0)


def _gradients(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    """:func:`adjoint_gradients`, and nothing for the other arguments."""
    return adjoint_gradients(ctx, *grads) + (None,) * len(Arguments._fields)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, k, *args = inputs
    save_rotation(ctx, k, Arguments(*args))


torch.library.register_autograd(
    "rope_kernels::rotate", _gradients, setup_context=_setup_operator, lib=operators.LIBRARY
)
