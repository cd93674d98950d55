"""Rotating and storing in a paged KV cache in one call, against the memory floor and against separate calls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk

from .norms import rms_norm
from .ours import FLOORS, TimedCall, floor
from .row import BenchmarkRow
from .shapes import DECODE_1, DECODE_32, LLAMA_8B, Shape, inputs

__all__ = ["append_rows"]

GROUP = "budgets"
_EPS = 1e-6
_PAGE_SIZE = 16
_INDEX_COPIES = "apply_rope_ and two index_copy_"
_NORMS_TOO = f"transformers' norms, {_INDEX_COPIES}"


def _cache(k: Tensor) -> rk.KVCache:
    """Pages in an order of their own, filled by one token after the other; in decode each token has its own page."""
    batch, tokens = k.shape[:2]
    pages = batch * -(-tokens // _PAGE_SIZE)
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).reshape(batch, -1)
    slots = rk.slots_of(order, torch.arange(tokens).expand(batch, tokens), _PAGE_SIZE)
    shape = pages, _PAGE_SIZE, *k.shape[2:]
    return rk.KVCache(torch.zeros(shape, dtype=k.dtype), torch.zeros(shape, dtype=k.dtype), slots)


def _calls(shape: Shape, against: str, is_normed: bool) -> tuple[TimedCall, TimedCall]:
    """Weights are 1: heads that are normed in place again and again stay as they are."""
    q, k, positions = x = inputs(LLAMA_8B, shape)
    v, weight, config = torch.randn_like(k), torch.ones(q.shape[-1], dtype=q.dtype), LLAMA_8B.config
    fused_cache, separate_cache = _cache(k), _cache(k)

    def fused(q: Tensor) -> Any:
        norm = rk.HeadNorm(weight, _EPS) if is_normed else None
        return rk.apply_rope_append(q, k, v, positions, config, fused_cache, q_norm=norm, k_norm=norm)

    def separate(q: Tensor, k: Tensor) -> Any:
        if is_normed:
            q, k = rms_norm(q, weight, _EPS), rms_norm(k, weight, _EPS)
        rk.apply_rope_(q, k, positions, config)
        slots = separate_cache.slots.flatten()
        for paged, rows in ((separate_cache.k, k), (separate_cache.v, v)):
            assert paged is not None
            paged.flatten(0, 1).index_copy_(0, slots, rows.flatten(0, 1))
        return q

    got, want = fused(q.clone())[0], separate(q.clone(), k.clone())
    caches = ((fused_cache.k, separate_cache.k), (fused_cache.v, separate_cache.v))
    for a, b in ((got, want), *caches):
        assert a is not None
        assert b is not None
        assert (a.float() - b.float()).abs().max() <= 2 * torch.finfo(q.dtype).eps * b.abs().max().float()
    k_too = k.clone()
    peer = floor("in place", x) if against in FLOORS["in place"] else lambda: separate(q, k_too)
    return lambda: fused(q), peer


def append_rows() -> Iterator[BenchmarkRow]:
    """At most 1.6 times the memory floor of an in-place rotation, with norms 1.75; and against separate calls."""
    passes, long = FLOORS["in place"][0], Shape(1, 4096)
    for shape, against, is_normed, needed in (
        (long, passes, False, 1 / 1.6), (long, passes, True, 1 / 1.75), (long, _NORMS_TOO, True, 20),
        (long, _INDEX_COPIES, False, 1), (DECODE_32, _INDEX_COPIES, False, 1.8),
        (DECODE_1, _INDEX_COPIES, False, 1.8), (DECODE_32, _NORMS_TOO, True, 4),
    ):  # fmt: skip
        size = str(shape) if shape.tokens == 1 else f"{shape.tokens} tokens"
        what = "norm, rotation and KV cache" if is_normed else "rotation and KV cache"
        yield BenchmarkRow(
            GROUP, f"{what}, {size}, against {against}", partial(_calls, shape, against, is_normed), needed
        )
