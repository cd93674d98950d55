"""The checked door of calls with a norm: checks all arguments, and calls the operators that norm and rotate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..config import RopeConfig
from ..errors import RopeShapeError
from ..ops import direct, norm_autograd, norm_operators
from ..ops.norm_operators import Weights
from ..ops.operators import Arguments
from . import checks
from .forms import rotate_other_form
from .head_norm import HeadNorm
from .norm_checks import cached_text, check_norm, normed_text, numbers_of, refuse_derivative_of_weights, weight_of
from .prepare import prepare, refuse_derivative, refuse_derivative_of_outputs
from .sharding import Shards, is_distributed, mark_written, rotate_shards

__all__ = ["NormedCall", "rotate_normed"]

Pair = tuple[Tensor, "Tensor | None"]


class NormedCall(NamedTuple):
    """The options of ``apply_rope``, ``out`` aside."""

    interleaved: bool | None
    layout: str
    seq_len: int | Tensor | None
    offset: int | Tensor | None
    cu_seqlens: Tensor | None
    inverse: bool
    q_norm: HeadNorm | None
    k_norm: HeadNorm | None


def rotate_normed(
    call: Callable[..., Pair], q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig,
    given: NormedCall, text: str | None, out: Pair | None,
) -> Pair:  # fmt: skip
    """(q, k) normed and rotated, or written to ``out``.

    ``call``: ``apply_rope``, or in place ``apply_rope_``; ``text``: without norms, ``None`` if the fast path cannot
    take the call.
    """
    is_in_place = isinstance(out, tuple) and len(out) == 2 and out[0] is q and out[1] is k
    made = None if text is None else _past_dispatcher(q, k, positions, given, text, out, is_in_place)
    if made is not None:
        return made
    _check_norms(q, k, given)
    made = rotate_other_form(call, q, k, positions, cfg, given._asdict(), None if is_in_place else out, is_in_place)
    if made is not None:
        return made
    if is_distributed(q):
        return _rotate_shards(call, q, k, positions, cfg, given, out, is_in_place)
    args = prepare(q, k, positions, cfg, given.interleaved, given.layout, given.seq_len, given.offset, given.cu_seqlens)
    norms = ("q_norm", given.q_norm), ("k_norm", given.k_norm)
    args = args._replace(text=normed_text(args.text, numbers_of(given.q_norm), numbers_of(given.k_norm)))
    weights = Weights(*(weight_of(name, norm, q, cfg.head_dim) for name, norm in norms))
    if out is None:
        return norm_autograd.rotate_norm(q, k, args, weights)
    _check_outputs(q, k, out, args, weights, is_in_place)
    norm_operators.rotate_into(q, k, *args, *weights, *out)
    if not is_compiling():
        torch._C._increment_version([x for x in out if x is not None])
    return out


def _past_dispatcher(
    q: Tensor, k: Tensor | None, positions: Tensor | None, given: NormedCall, text: str, out: Pair | None,
    is_in_place: bool,
) -> Pair | None:  # fmt: skip
    """The call by the fast path; ``None``, with nothing written, if that does not take it."""
    _, _, seq_len, offset, cu_seqlens, _, q_norm, k_norm = given
    if any(norm is not None and type(norm) is not HeadNorm for norm in (q_norm, k_norm)):
        return None
    text = cached_text(text, numbers_of(q_norm), numbers_of(k_norm))
    arguments = q, k, positions, offset, seq_len, cu_seqlens, text
    weights = None if q_norm is None else q_norm.weight, None if k_norm is None else k_norm.weight
    if out is None:
        return direct.rotate(*arguments, *weights)
    if is_in_place:
        return out if direct.rotate_(*arguments, *weights) else None
    usual = type(out) is tuple and len(out) == 2
    return out if usual and direct.rotate_out(*arguments, *out, *weights) else None


def _check_norms(q: Tensor, k: Tensor | None, given: NormedCall) -> None:
    checks.check_flag("inverse", given.inverse)
    for name, norm, x in (("q_norm", given.q_norm, q), ("k_norm", given.k_norm, k)):
        check_norm(name, norm, x)
        if norm is not None and given.inverse:
            raise RopeShapeError(f"{name}: given with inverse=True; a norm cannot be undone")


def _check_outputs(
    q: Tensor, k: Tensor | None, out: Pair, args: Arguments, weights: Weights, is_in_place: bool
) -> None:  # fmt: skip
    if is_in_place:
        if not is_compiling():
            checks.check_in_place(q, k)
        refuse_derivative(q, k, args.positions)
    else:
        checks.check_outputs(q, k, out)
        checks.check_outputs_apart(q, k, out)
        refuse_derivative_of_outputs(q, k, out, args.positions)
    refuse_derivative_of_weights(q_norm=weights.q, k_norm=weights.k)


def _rotate_shards(
    call: Callable[..., Pair], q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig,
    given: NormedCall, out: Pair | None, is_in_place: bool,
) -> Pair:  # fmt: skip
    if is_in_place:
        refuse_derivative(q, k)
    elif out is not None:
        refuse_derivative_of_outputs(q, k, out)
    options: dict[str, Any] = dict(
        interleaved=given.interleaved, inverse=given.inverse,
        q_norm=_local_norm("q_norm", q, given.q_norm, given.layout),
        k_norm=_local_norm("k_norm", k, given.k_norm, given.layout),
    )  # fmt: skip
    made = rotate_shards(
        call, q, k, positions, cfg, given.layout, given.seq_len, given.offset, given.cu_seqlens, options,
        None if is_in_place else out,
    )  # fmt: skip
    if is_in_place:
        mark_written(q, k)
        return q, k
    return made


def _local_norm(name: str, x: Tensor | None, norm: HeadNorm | None, layout: str) -> HeadNorm | None:
    """The norm of the local parts. The gradient of its weight is the sum over ranks with other heads or tokens."""
    from torch.distributed.tensor import Partial, Replicate

    if x is None or norm is None or norm.weight is None:
        return norm
    weight: Any = norm.weight
    shards = Shards.of(x, layout, name[0])
    if not is_distributed(weight) or weight.device_mesh != shards.mesh:
        what = "on another mesh" if is_distributed(weight) else "a plain tensor"
        raise RopeShapeError(f"{name}: its weight is {what}, must be a DTensor on q's mesh {shards.mesh}")
    for dim, placement in enumerate(weight.placements):
        if not placement.is_replicate():
            raise RopeShapeError(f"{name}: its weight is {placement} on dimension {dim} of the mesh, not Replicate()")
    placements = [Replicate() if axis is None else Partial() for axis in shards.axes]
    local = weight.to_local(grad_placements=placements)
    return HeadNorm(local, norm.eps, weight_offset=norm.weight_offset, after_rope=norm.after_rope)
