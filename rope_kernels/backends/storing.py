"""Stores rotated k and v in a paged KV cache, in plain torch operations: the reference that kernels must match.

A backend without a kernel of its own for a call rotates by its kernels and stores by these.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.norms import Norm, normed
from ..core.spec import Spec
from .inputs import Append, Inputs, Norms

__all__ = ["quantised", "rotate_then_store"]

_Rotate = Callable[[Tensor, "Tensor | None", Tensor, "Tensor | None", Inputs, Spec], object]
_RotateNorm = Callable[[Tensor, "Tensor | None", Tensor, "Tensor | None", Inputs, Spec, Norms], object]


def rotate_then_store(
    rotate: _Rotate, rotate_norm: _RotateNorm, q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    inputs: Inputs, spec: Spec, norms: Norms, append: Append,
) -> None:  # fmt: skip
    """Rotate q into ``q_out``, and k into ``k_out`` if that is given, and store k and v; see :class:`.Append`.

    ``rotate``, ``rotate_norm``: those of the backend.
    """

    def turn(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, norms: Norms) -> None:
        if norms.q is norms.k is None:
            rotate(q, k, q_out, k_out, inputs, spec)
        else:
            rotate_norm(q, k, q_out, k_out, inputs, spec, norms)

    of_q = Norms(norms.q, None, norms.q_weight, None)
    rows = k_out
    if k is None:
        turn(q, None, q_out, None, of_q)
    elif append.k_scale is None:
        rows = torch.empty_like(k) if rows is None else rows
        turn(q, k, q_out, rows, norms)
    else:
        # The cache gets the rotated k before it is rounded to k's dtype. Made first: k_out may be k.
        rows = k.to(torch.float32, copy=True)
        turn(rows, None, rows, None, Norms(norms.k, None, norms.k_weight, None))
        turn(q, None if k_out is None else k, q_out, k_out, of_q if k_out is None else norms)
    live, slots = _live(q, inputs, append)
    if rows is not None and append.k_cache is not None:
        _store(rows, append.k_cache, append.k_scale, live, slots)
    if append.v is not None and append.v_cache is not None:
        v = _normed_v(append.v, append.v_norm, append.v_weight, append.v_scale is not None)
        _store(v, append.v_cache, append.v_scale, live, slots)


def _normed_v(v: Tensor, norm: Norm | None, weight: Tensor | None, in_float32: bool) -> Tensor:
    """v, or its heads normed, in v's dtype or in float32."""
    y = v if norm is None else normed(v, norm, weight)
    return y.float() if in_float32 else y.to(v.dtype)


def _live(q: Tensor, inputs: Inputs, append: Append) -> tuple[Tensor, Tensor]:
    """(whether each of the tokens that have a slot is stored, int64 slots), both (rows,)."""
    slots = append.slots.to(torch.int64)
    cache = append.k_cache if append.k_cache is not None else append.v_cache
    assert cache is not None
    live = (slots >= 0) & (slots < cache.shape[0] * cache.shape[1])
    if inputs.cu_seqlens is not None:
        live &= torch.arange(slots.shape[0], device=q.device) < inputs.cu_seqlens[-1]
    return live, slots


def quantised(y: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 ``y`` (..., heads, width) over its head's scale, rounded to nearest even and clamped to finite values.

    A NaN stays one, and becomes 0 in int8.
    """
    z = y / scale[:, None]
    if dtype == torch.int8:
        return z.nan_to_num(0.0).round().clamp(-128.0, 127.0).to(dtype)
    most = torch.finfo(dtype).max
    return z.clamp(-most, most).to(dtype)


def _store(rows: Tensor, cache: Tensor, scale: Tensor | None, live: Tensor, slots: Tensor) -> None:
    """Write rows (batch, tokens, heads, width) to their slots of a (pages, page_size, heads, width) cache."""
    rows = rows.flatten(0, 1)[: slots.shape[0]]
    rows = rows if scale is None else quantised(rows, scale, cache.dtype)
    if cache.element_size() == 1:  # copied as bytes: not every device copies every type
        cache, rows = cache.view(torch.uint8), rows.view(torch.uint8)
    page_size = cache.shape[1]
    if rows.is_cpu:
        rows, slots = rows[live], slots[live]
    elif rows.shape[0]:
        # A selection would wait for the device. Instead a token that is not stored repeats one that is, or writes
        # what is there.
        first = live.to(torch.int32).argmax()
        used = torch.where(live.any(), slots[first], 0)
        rows = torch.where(live[:, None, None], rows, torch.where(live.any(), rows[first], _row(cache, used)))
        slots = torch.where(live, slots, used)
    cache[slots.div(page_size, rounding_mode="floor"), slots.remainder(page_size)] = rows


def _row(cache: Tensor, slot: Tensor) -> Tensor:
    return cache[slot.div(cache.shape[1], rounding_mode="floor"), slot.remainder(cache.shape[1])]
