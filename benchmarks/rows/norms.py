"""The norm of heads and the rotation in one call, against the memory floor and against separate calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk

from .ours import FLOORS, TimedCall, floor
from .row import BenchmarkRow
from .shapes import DECODE_1, DECODE_32, LLAMA_8B, Shape, inputs

__all__ = ["norm_rows", "rms_norm"]

GROUP = "budgets"
_EPS = 1e-6


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As transformers' Qwen3 does it."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _calls(shape: Shape, against: str) -> tuple[TimedCall, TimedCall]:
    """Weights are 1: heads that are normed in place again and again stay as they are."""
    q, k, positions = x = inputs(LLAMA_8B, shape)
    weight, config = torch.ones(q.shape[-1], dtype=q.dtype), LLAMA_8B.config

    def separate(q: Tensor, k: Tensor) -> Any:
        return rk.apply_rope_(rms_norm(q, weight, _EPS), rms_norm(k, weight, _EPS), positions, config)

    def fused(q: Tensor, k: Tensor) -> Any:
        norm = rk.HeadNorm(weight, _EPS)
        return rk.apply_rope_(q, k, positions, config, q_norm=norm, k_norm=norm)

    for got, want in zip(fused(q.clone(), k.clone()), separate(q, k), strict=True):
        assert (got.float() - want.float()).abs().max() <= 2 * torch.finfo(q.dtype).eps * want.abs().max().float()
    peer = floor("in place", x) if against in FLOORS["in place"] else lambda: separate(q, k)
    return lambda: fused(q, k), peer


def norm_rows() -> Iterator[BenchmarkRow]:
    """At most 1.2 times the memory floor of long calls; and against transformers' norms and our rotation."""
    passes, apart = FLOORS["in place"][0], "transformers' norms and our rotation"
    for shape, against, needed in (
        (Shape(1, 4096), passes, 1 / 1.2), (Shape(1, 32768), passes, 1 / 1.2), (Shape(1, 4096), apart, 20),
        (DECODE_1, apart, 4), (DECODE_32, apart, 4),
    ):  # fmt: skip
        size = str(shape) if shape.tokens == 1 else f"{shape.tokens} tokens"
        name = f"norm and rotation, in place, {size}, against {against}"
        yield BenchmarkRow(GROUP, name, lambda shape=shape, against=against: _calls(shape, against), needed)
