"""apply_rope_append: norms and rotates q and k and stores k and v in a paged KV cache, in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..config import RopeConfig
from ..core.layouts import LAYOUTS
from ..core.names import LayoutName
from ..errors import RopeShapeError
from ..ops import append_operators, autograd, direct
from ..ops.append_operators import Stored
from . import cache_checks, checks
from .apply import usual_text
from .head_norm import HeadNorm
from .kv_cache import KVCache
from .norm_checks import cached_text, check_norm, normed_text, numbers_of, refuse_derivative_of_weights, weight_of
from .prepare import prepare
from .sharding import is_distributed

__all__ = ["apply_rope_append"]

Pair = tuple[Tensor, "Tensor | None"]


class _Norms(NamedTuple):
    q: HeadNorm | None
    k: HeadNorm | None
    v: HeadNorm | None


def apply_rope_append(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    positions: Tensor | None,
    cfg: RopeConfig,
    cache: KVCache,
    *,
    q_norm: HeadNorm | None = None,
    k_norm: HeadNorm | None = None,
    v_norm: HeadNorm | None = None,
    out: Pair | None = None,
    return_k: bool = False,
    interleaved: bool | None = None,
    layout: LayoutName = "bshd",
    seq_len: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
) -> Pair:
    """Rotate q and k, and store k and v in a paged KV cache: what a layer does before attention, in one call.

    q is rotated in place; k and v are never written. The cache gets the bits of ``apply_rope`` and an indexed copy, or
    numbers of 8 bits: ``value / scale`` in float32, rounded once to nearest even and clamped to finite numbers; NaN
    stays NaN, and is 0 in int8.

    On a CPU a slot past the cache is an error, and nothing is written; on a GPU such a token is not stored.

    Example::

        cache = rk.KVCache(k_cache, v_cache, rk.slots_of(block_table, positions, page_size))
        q, _ = rk.apply_rope_append(q, k, v, positions, cfg, cache)
        y = attention(q, k_cache, v_cache, ...)

    Args:
        q: (batch, seq, heads, head_dim), or as ``layout`` says: float32, float16 or bfloat16, with last stride 1.
        k: (batch, seq, kv_heads, head_dim), q's dtype; ``None`` if the cache has no k.
        v: (batch, seq, kv_heads, width), q's dtype, of any width; ``None`` if the cache has no v.
        positions: as in :func:`rope_kernels.apply_rope`.
        cfg: the RoPE config.
        cache: where k and v go; see :class:`KVCache`.
        q_norm: norm the heads of q in the same call; see :class:`HeadNorm`.
        k_norm: the same for k.
        v_norm: the same for v, which is not rotated.
        out: (q_out, k_out) to write rotated q, and unless ``k_out`` is ``None`` k, to; returned as given.
        return_k: return the rotated k too, in a new tensor unless ``out`` has one.
        interleaved: as in :func:`rope_kernels.apply_rope`.
        layout: as in :func:`rope_kernels.apply_rope`.
        seq_len: as in :func:`rope_kernels.apply_rope`.
        offset: as in :func:`rope_kernels.apply_rope`.
        cu_seqlens: as in :func:`rope_kernels.apply_rope`; tokens past the last bound are not stored.
        inverse: must be False: a cache holds rotated k.

    Returns:
        (q, k) rotated, or (q, None) unless the rotated k was asked for.

    Raises:
        RopeShapeError: a tensor does not fit; nothing has been written.
        RuntimeError: q, k, v or a norm's weight needs a gradient.
    """
    norms = _Norms(q_norm, k_norm, v_norm)
    text = usual_text(cfg, interleaved, layout, inverse)
    if text is not None and not inverse:
        made = _past_dispatcher(q, k, v, positions, cache, norms, (seq_len, offset, cu_seqlens), text, out, return_k)
        if made is not None:
            return made
    options: dict[str, Any] = dict(
        interleaved=interleaved, layout=layout, seq_len=seq_len, offset=offset, cu_seqlens=cu_seqlens
    )
    _check_call(q, k, v, cfg, cache, norms, layout, inverse)
    args = prepare(q, k, positions, cfg, **options)
    args = args._replace(text=normed_text(args.text, *map(numbers_of, norms)))
    stored = _stored(q, k, v, cache, norms, layout, out, return_k)
    _refuse_derivative(q, k, v, stored)
    append_operators.rotate_append(q, k, v, *args, *stored)
    written = [x for x in (stored.q_out, stored.k_out, stored.k_cache, stored.v_cache) if x is not None]
    if not is_compiling():
        torch._C._increment_version(written)
    return stored.q_out, stored.k_out


def _past_dispatcher(
    q: Tensor, k: Tensor | None, v: Tensor | None, positions: Tensor | None, cache: KVCache, norms: _Norms,
    lengths: tuple[Any, Any, Tensor | None], text: str, out: Pair | None, return_k: bool,
) -> Pair | None:  # fmt: skip
    """The call by the fast path; ``None``, with nothing written, if that does not take it.

    ``lengths``: seq_len, offset, cu_seqlens.
    """
    q_norm, k_norm, v_norm = norms
    if type(cache) is not KVCache or any(norm is not None and type(norm) is not HeadNorm for norm in norms):
        return None
    written = (q, None) if out is None else out
    if type(written) is not tuple or len(written) != 2:
        return None
    q_out, k_out = written
    if return_k is not False and k_out is None:
        if return_k is not True or type(k) is not Tensor:
            return None
        k_out = torch.empty_like(k)
    if q_norm is k_norm is v_norm is None:
        q_weight = k_weight = v_weight = None
    else:
        text = cached_text(text, numbers_of(q_norm), numbers_of(k_norm), numbers_of(v_norm))
        q_weight, k_weight, v_weight = (None if norm is None else norm.weight for norm in norms)
    seq_len, offset, cu_seqlens = lengths
    done = direct.append(
        q, k, positions, offset, seq_len, cu_seqlens, text, v, q_weight, k_weight, v_weight, cache.slots, cache.k_scale,
        cache.v_scale, q_out, k_out, cache.k, cache.v,
    )  # fmt: skip
    return (q_out, k_out) if done else None


def _check_call(
    q: Tensor, k: Tensor | None, v: Tensor | None, cfg: RopeConfig, cache: KVCache, norms: _Norms, layout: str,
    inverse: bool,
) -> None:  # fmt: skip
    checks.check_config(cfg, layout)
    checks.check_flag("inverse", inverse)
    if inverse:
        raise RopeShapeError("inverse: got True; a cache holds rotated k (rerotate_ and shift_ change a cache)")
    if not isinstance(cache, KVCache):
        raise RopeShapeError(f"cache: got {type(cache).__name__}, a KVCache is needed")
    tensors = dict(q=q, k=k, v=v, slots=cache.slots, k_scale=cache.k_scale, v_scale=cache.v_scale)
    for name, x in (tensors | {"cache.k": cache.k, "cache.v": cache.v}).items():
        if x is not None and is_distributed(x):
            raise RopeShapeError(f"{name}: is a DTensor; give each rank's own heads and cache (.to_local())")
    for name, norm, x in zip(("q_norm", "k_norm", "v_norm"), norms, (q, k, v), strict=True):
        check_norm(name, norm, x)


def _stored(
    q: Tensor, k: Tensor | None, v: Tensor | None, cache: KVCache, norms: _Norms, layout: str, out: Pair | None,
    return_k: bool,
) -> Stored:  # fmt: skip
    """The operator's last arguments. ``prepare`` has checked q and k."""
    cache_checks.check_caches(q, k, v, cache, layout)
    checks.check_flag("return_k", return_k)
    q_out, k_out = (q, None) if out is None else cache_checks.checked_outputs(q, k, out)
    if return_k and k_out is None:
        if k is None:
            raise RopeShapeError("return_k: got True without k")
        k_out = torch.empty_like(k)
    cache_checks.check_memory(q, k, v, q_out, k_out, cache)
    axes = LAYOUTS[layout]
    tokens = q.shape[axes.tokens] * (1 if axes.batch is None else q.shape[axes.batch])
    slots = cache_checks.checked_slots(cache, q, layout, tokens)
    q_weight, k_weight, v_weight = (
        None if x is None else weight_of(name, norm, q, x.shape[-1])
        for name, norm, x in zip(("q_norm", "k_norm", "v_norm"), norms, (q, k, v), strict=True)
    )
    k_scale, v_scale = map(cache_checks.flat_scale, (cache.k_scale, cache.v_scale))
    return Stored(q_weight, k_weight, v_weight, slots, k_scale, v_scale, q_out, k_out, cache.k, cache.v)


def _refuse_derivative(q: Tensor, k: Tensor | None, v: Tensor | None, stored: Stored) -> None:
    if autograd.is_differentiated(q, k) or (v is not None and autograd.is_differentiated(v, None)):
        raise RuntimeError("apply_rope_append: a derivative is needed, which a cache would lose; use apply_rope")
    refuse_derivative_of_weights(q_norm=stored.q_weight, k_norm=stored.k_weight, v_norm=stored.v_weight)
    for x in (stored.q_out, stored.k_out, stored.k_cache, stored.v_cache):
        if x is not None and autograd.needs_gradient(x, None):
            raise RuntimeError("apply_rope_append: writes to a tensor that needs a gradient, which would be wrong")
