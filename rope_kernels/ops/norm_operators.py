"""The operators that norm heads and rotate them in one call: ``rotate_norm``, its backward, and into given outputs.

The caller has checked all arguments. Gradients are in :mod:`.norm_autograd`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backend_for, reference
from ..backends.inputs import Norms
from ..core.layouts import from_tokens_first, tokens_first
from ..core.spec import Operation, parse_text
from .operators import INDEX_TENSORS, LIBRARY, TAGS, Arguments, inputs_of

__all__ = ["Weights", "rotate_into", "rotate_norm", "rotate_norm_backward"]

_WEIGHTS = "Tensor? q_weight, Tensor? k_weight"
_SCHEMAS = {
    "rotate_norm": f"(Tensor q, Tensor? k, {INDEX_TENSORS}, str spec, {_WEIGHTS}) -> (Tensor, Tensor)",
    "rotate_norm_backward": f"(Tensor? grad_q, Tensor? grad_k, Tensor q, Tensor? k, {INDEX_TENSORS}, str spec, "
    f"{_WEIGHTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    "rotate_into": f"(Tensor q, Tensor? k, {INDEX_TENSORS}, str spec, {_WEIGHTS}, Tensor(a!) q_out, "
    "Tensor(b!)? k_out) -> ()",
}


class Weights(NamedTuple):
    """The weights of the norms: (head_dim,), or ``None``."""

    q: Tensor | None
    k: Tensor | None


def _split(rest: tuple[Any, ...]) -> tuple[Arguments, Weights]:
    count = len(Arguments._fields)
    return Arguments(*rest[:count]), Weights(*rest[count : count + 2])


def _wide(x: Tensor | None, layout: str) -> Tensor | None:
    return None if x is None else tokens_first(x, layout)


def _norms(operation: Operation, weights: Weights) -> Norms:
    return Norms(operation.q_norm, operation.k_norm, weights.q, weights.k)


def _into(q: Tensor, k: Tensor | None, args: Arguments, weights: Weights, q_out: Tensor, k_out: Tensor | None) -> None:
    operation = parse_text(args.text)
    if q.numel() == 0 and (k is None or k.numel() == 0):
        return
    layout = operation.layout
    backend_for(q.device).rotate_norm(
        tokens_first(q, layout), _wide(k, layout), tokens_first(q_out, layout), _wide(k_out, layout),
        inputs_of(args, operation), operation.spec, _norms(operation, weights),
    )  # fmt: skip


def _new_like(x: Tensor | None, of: Tensor) -> Tensor:
    """An operator cannot return ``None``: the result of a missing tensor is empty."""
    return of.new_empty(0) if x is None else torch.empty_like(x)


def _rotate_norm(q: Tensor, k: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    args, weights = _split(rest)
    q_out, k_out = _new_like(q, q), _new_like(k, q)
    _into(q, k, args, weights, q_out, None if k is None else k_out)
    return q_out, k_out


def _fake_rotate_norm(q: Tensor, k: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    parse_text(_split(rest)[0].text)
    return _new_like(q, q), _new_like(k, q)


def _rotate_into(q: Tensor, k: Tensor | None, *rest: Any) -> None:
    _into(q, k, *_split(rest), *rest[-2:])


def _fake_rotate_into(q: Tensor, k: Tensor | None, *rest: Any) -> None:
    parse_text(_split(rest)[0].text)


def _backward(
    grad_q: Tensor | None, grad_k: Tensor | None, q: Tensor, k: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args, weights = _split(rest)
    operation = parse_text(args.text)
    layout = operation.layout
    grads = _wide(grad_q, layout), _wide(grad_k, layout)
    norms = _norms(operation, weights)
    given = tokens_first(q, layout), _wide(k, layout), inputs_of(args, operation), operation.spec, norms
    if q.numel() == 0:
        made = reference.rotate_norm_backward(grads, *given)
    else:
        made = backend_for(q.device).rotate_norm_backward(grads, *given)
    of_q, of_k = (q.new_empty(0) if x is None else from_tokens_first(x, layout) for x in made[:2])
    of_q_weight, of_k_weight = (q.new_empty(0) if x is None else x for x in made[2:])
    return of_q.contiguous(), of_k.contiguous(), of_q_weight, of_k_weight


def _fake_backward(
    grad_q: Tensor | None, grad_k: Tensor | None, q: Tensor, k: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args, weights = _split(rest)
    operation = parse_text(args.text)
    of_x = (q.new_empty(0) if x is None or g is None else x.new_empty(x.shape) for x, g in ((q, grad_q), (k, grad_k)))
    sides = (grad_q, operation.q_norm, weights.q), (grad_k, operation.k_norm, weights.k)
    of_weights = (
        q.new_empty(0) if grad is None or norm is None or weight is None else torch.empty_like(weight)
        for grad, norm, weight in sides
    )
    return *of_x, *of_weights  # type: ignore[return-value]


for _name, _implementation, _fake in (
    ("rotate_norm", _rotate_norm, _fake_rotate_norm),
    ("rotate_norm_backward", _backward, _fake_backward),
    ("rotate_into", _rotate_into, _fake_rotate_into),
):
    LIBRARY.define(f"{_name}{_SCHEMAS[_name]}", tags=TAGS)
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    LIBRARY.impl(_name, _fake, "Meta")

# Called by the native backend alone.
LIBRARY.define(f"native_rotate_norm_out{_SCHEMAS['rotate_into']}")
LIBRARY.define(
    f"native_rotate_norm_backward(Tensor grad_q, Tensor? grad_k, Tensor q, Tensor? k, {INDEX_TENSORS}, str spec, "
    f"{_WEIGHTS}, int parts, Tensor(a!) q_out, Tensor(b!)? k_out, Tensor(c!)? q_partials, Tensor(d!)? k_partials) -> ()"
)

rotate_norm = torch.ops.rope_kernels.rotate_norm.default
rotate_norm_backward = torch.ops.rope_kernels.rotate_norm_backward.default
rotate_into = torch.ops.rope_kernels.rotate_into.default
