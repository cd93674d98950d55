"""The checked door of calls with a norm: checks all arguments, and calls the operators that norm and rotate."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..config import RopeConfig
from ..core.norms import Norm
from ..core.spec import with_norms
from ..errors import RopeShapeError
from ..ops import autograd, direct, norm_autograd, norm_operators
from ..ops.norm_operators import Weights
from ..ops.operators import Arguments
from . import checks
from .head_norm import HeadNorm
from .prepare import prepare, refuse_derivative, refuse_derivative_of_outputs
from .sharding import Shards, is_distributed, mark_written, rotate_shards

__all__ = ["NormedCall", "rotate_normed"]

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Pair = tuple[Tensor, "Tensor | None"]
_Numbers = tuple[float, float, bool]
"""eps, weight_offset and after_rope of a :class:`HeadNorm`."""


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
    if is_distributed(q):
        return _rotate_shards(call, q, k, positions, cfg, given, out, is_in_place)
    args = prepare(
        q, k, positions, cfg, given.interleaved, given.layout, given.seq_len, given.offset, given.cu_seqlens
    )  # fmt: skip
    args = args._replace(text=_normed_text(args.text, _numbers(given.q_norm), _numbers(given.k_norm)))
    weights = Weights(_weight("q_norm", given.q_norm, q, cfg), _weight("k_norm", given.k_norm, q, cfg))
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
    text = _cached_text(text, _numbers(q_norm), _numbers(k_norm))
    arguments = q, k, positions, offset, seq_len, cu_seqlens, text
    weights = None if q_norm is None else q_norm.weight, None if k_norm is None else k_norm.weight
    if out is None:
        return direct.rotate(*arguments, *weights)
    if is_in_place:
        return out if direct.rotate_(*arguments, *weights) else None
    usual = type(out) is tuple and len(out) == 2
    return out if usual and direct.rotate_out(*arguments, *out, *weights) else None


def _numbers(norm: HeadNorm | None) -> _Numbers | None:
    return None if norm is None else (norm.eps, norm.weight_offset, norm.after_rope)


def _normed_text(text: str, q_norm: _Numbers | None, k_norm: _Numbers | None) -> str:
    return with_norms(text, *(None if numbers is None else Norm(*numbers) for numbers in (q_norm, k_norm)))


# For the fast path only: Dynamo warns of every lru_cache that it traces, and never traces that path.
_cached_text = lru_cache(maxsize=1024)(_normed_text)


def _check_norms(q: Tensor, k: Tensor | None, given: NormedCall) -> None:
    checks.check_flag("inverse", given.inverse)
    for name, norm, x in (("q_norm", given.q_norm, q), ("k_norm", given.k_norm, k)):
        if norm is None:
            continue
        if not isinstance(norm, HeadNorm):
            raise RopeShapeError(f"{name}: got {type(norm).__name__}, a HeadNorm or None is needed")
        if given.inverse:
            raise RopeShapeError(f"{name}: given with inverse=True; a norm cannot be undone")
        if x is None:
            raise RopeShapeError(f"{name}: given without {name[0]}")


def _weight(name: str, norm: HeadNorm | None, q: Tensor, cfg: RopeConfig) -> Tensor | None:
    weight = None if norm is None else norm.weight
    if weight is None:
        return None
    if is_distributed(weight):
        raise RopeShapeError(f"{name}: its weight is a DTensor, q is a plain tensor; both must be one or the other")
    shape, head_dim = tuple(weight.shape), cfg.head_dim
    if shape != (head_dim,):
        is_whole = len(shape) == 1 and shape[0] > head_dim and shape[0] % head_dim == 0
        hint = "; one for all heads norms the whole projection, which is another norm" if is_whole else ""
        raise RopeShapeError(f"{name}: its weight has shape {shape}, must be ({head_dim},){hint}")
    if weight.dtype not in _WEIGHT_DTYPES:
        raise RopeShapeError(f"{name}: its weight is {weight.dtype}, allowed are float32, float16, bfloat16")
    if weight.device != q.device:
        raise RopeShapeError(f"{name}: its weight is on {weight.device}, must be on q's {q.device}")
    return weight


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
    for name, weight in (("q_norm", weights.q), ("k_norm", weights.k)):
        if weight is not None and autograd.is_differentiated(weight, None):
            raise RuntimeError(
                f"{name}: its weight needs a derivative, which a call in place or with out= would lose; use apply_rope"
            )


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
