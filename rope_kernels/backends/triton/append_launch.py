"""Calls that store in a KV cache on the Triton backend: launches :mod:`.append_kernels`."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...core.norms import Norm
from ...core.spec import Spec
from ..inputs import Append, Inputs, Norms
from . import append_kernels
from .arguments import Beside, Pair, is_in_place, prepared
from .launching import OPTIONS, device_of, first_in_capture
from .norm_launch import row_norm
from .plan import Tile, value_tile

__all__ = ["append_in_one_launch"]

_CODES = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.int8: "int8"}
_VECTOR_BYTES = 16
_MOST_NORMED_VALUES = 64
"""Of v that a thread may hold, in fp32 registers."""


def append_in_one_launch(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms,
    append: Append,
) -> bool:  # fmt: skip
    """Norm and rotate q and k and store k and v, or answer False, with nothing done, where several launches must.

    These are needed where no pair turns, where k is rotated in place and q is not, and for wide rows of v with a norm
    beside much smaller heads.
    """
    in_place = is_in_place((q, q_out))
    k_in_place = k is not None and k_out is not None and is_in_place((k, k_out))
    if not spec.rotation.num_pairs or (k_in_place and not in_place):
        return False
    stored_k = None if k is None or append.k_cache is None else (k, append.k_cache)
    stored_v = None if append.v is None or append.v_cache is None else (append.v, append.v_cache)
    pairs: list[Pair | None] = [(q, q_out), None if k is None else (k, k_out)]  # type: ignore[list-item]
    aligned = min(_VECTOR_BYTES if pair is None else _aligned(*pair) for pair in (stored_k, stored_v))
    beside = Beside((0, 0, 0) if append.v is None else append.v.stride()[:3], aligned)
    k_code, v_code = (_CODES.get(pair[1].dtype, "") if pair else "" for pair in (stored_k, stored_v))
    whole_rows = k_code != "" or any(norm is not None for norm in (norms.q, norms.k, append.v_norm))
    x, arguments, tile, angle, grid, *_ = prepared(
        pairs, q.shape[0], q.shape[1], inputs, spec, normed=whole_rows, beside=beside
    )
    of_v = None
    if append.v is not None and stored_v is not None:
        of_v = value_tile(tile, append.v.shape[2], append.v.shape[3], _has_dense_heads(*stored_v))
    if append.v_norm is not None and of_v is not None and _values(of_v) > _MOST_NORMED_VALUES:
        return False
    of_q, of_k = (
        row_norm(norm, weight, tile, spec.rotation)
        for norm, weight in ((norms.q, norms.q_weight), (norms.k, norms.k_weight))
    )
    with device_of(x), first_in_capture():
        append_kernels.rotate_append_kernel[grid](
            *arguments, *_norm_arguments(norms, append), *_cache_arguments(stored_k, stored_v, append),
            ANGLE=angle, TILE=tile,
            K_OUT=None if k_out is None else tile if k_in_place else _apart(tile, tile.MEMORY.DENSE_HEADS),
            K_STORE=None if stored_k is None else _apart(tile, _has_dense_heads(*stored_k)),
            V_STORE=of_v, K_CODE=k_code, V_CODE=v_code, Q_NORM=of_q, K_NORM=of_k,
            V_NORM=None if of_v is None else row_norm(append.v_norm, append.v_weight, of_v, spec.rotation),
            num_warps=tile.WARPS, **OPTIONS,
        )  # fmt: skip
    return True


def _apart(tile: Tile, dense_heads: bool) -> Tile:
    """The same for outputs of their own."""
    return replace(tile, MEMORY=replace(tile.MEMORY, IN_PLACE=False, DENSE_HEADS=dense_heads))


def _has_dense_heads(x: Tensor, cache: Tensor) -> bool:
    return x.shape[2] == 1 or x.stride(2) == cache.stride(2) == x.shape[3]


def _aligned(x: Tensor, cache: Tensor) -> int:
    """Bytes, in the dtype of ``x``, that the rows of both are aligned to; as of one element if their length is odd."""
    size = x.element_size()
    return size if x.shape[3] % 2 else min(_alignment(x), size // cache.element_size() * _alignment(cache))


def _alignment(x: Tensor) -> int:
    strides = (s for s, n in zip(x.stride()[:3], x.shape, strict=False) if n > 1)
    return math.gcd(_VECTOR_BYTES, x.data_ptr(), *(s * x.element_size() for s in strides))


def _values(tile: Tile) -> int:
    """Channels that a thread holds of whole rows."""
    rows = tile.TOKENS * tile.Q_BLOCK * tile.UNITS // (32 * tile.WARPS)
    return rows * len(tile.RESTS) * (1 + tile.WORDS)


def _norm_arguments(norms: Norms, append: Append) -> tuple[Tensor | float | None, ...]:
    numbers = [norm or Norm(0.0) for norm in (*norms[:2], append.v_norm)]
    return (
        *norms[2:], append.v_weight, *(norm.weight_offset for norm in numbers), *(norm.eps for norm in numbers),
    )  # fmt: skip


def _cache_arguments(stored_k: Pair | None, stored_v: Pair | None, append: Append) -> tuple[Tensor | float | None, ...]:
    caches = [None if pair is None else pair[1] for pair in (stored_k, stored_v)]
    scales = (append.k_scale, append.v_scale)
    one = next(cache for cache in caches if cache is not None)
    slots = append.slots.contiguous()
    return (
        append.v, *map(_as_stored, caches), *scales, *(int(s is not None and s.shape[0] > 1) for s in scales),
        slots, slots.shape[0], one.shape[0] * one.shape[1], one.shape[1], 1.0 / one.shape[1],
        *(s for cache in caches for s in ((0, 0, 0) if cache is None else cache.stride()[:3])),
    )  # fmt: skip


def _as_stored(cache: Tensor | None) -> Tensor | None:
    """Codes are stored as bytes."""
    return cache.view(torch.uint8) if cache is not None and cache.dtype in _CODES else cache
