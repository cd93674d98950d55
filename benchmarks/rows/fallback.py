"""The fallback in plain torch against what it replaces: transformers' rotary embedding and apply function, eager."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any
from unittest import mock

import torch

import rope_kernels as rk
from rope_kernels.measuring.timing import Pair, alternate
from rope_kernels.ops import direct

from . import peers
from .ours import FORMS, Inputs, TimedCall
from .row import BenchmarkRow
from .shapes import LLAMA_8B, Shape, inputs

__all__ = ["fallback_rows"]

GROUP = "budgets"
NEEDED = 1.0
"""No slower than transformers."""


def _first_layer(x: Inputs) -> tuple[TimedCall, TimedCall]:
    """Embedding and apply: our call never sees the positions of the call before."""
    q, k, positions = x
    turns = cycle((positions, positions + 1))
    return lambda: rk.apply_rope(q, k, next(turns), LLAMA_8B.config), peers.transformers(LLAMA_8B, x)


def _next_layer(form: str, x: Inputs) -> tuple[TimedCall, TimedCall]:
    """Apply alone: the positions are those of the layer before."""
    peers.transformers(LLAMA_8B, x)  # checks our result
    with torch.no_grad():
        first: Any = FORMS[form](LLAMA_8B.config, x[0].clone(), x[1].clone(), x[2])()
        wanted = rk.apply_rope(*x, LLAMA_8B.config)
        assert all(map(torch.equal, first, wanted)), f"{form}: not the bits of the allocating call"
    return FORMS[form](LLAMA_8B.config, *x), peers.by_transformers_table(LLAMA_8B, x)[1]


def _without_library(ours: TimedCall, peer: TimedCall, seconds: float) -> Pair:
    """Time both as in an installation that has no library, where the direct path answers at once."""
    names = ("rotate", "rotate_", "rotate_out", "rotate_table")
    with mock.patch.multiple(direct, **dict.fromkeys(names, lambda *arguments: None)):
        return alternate(ours, peer, seconds)


def _row(name: str, tokens: int, dtype: str) -> BenchmarkRow:
    def build() -> tuple[TimedCall, TimedCall]:
        x = inputs(LLAMA_8B, Shape(1, tokens), dtype)
        if name == "first layer":
            return _first_layer(x)
        return peers.by_transformers_table(LLAMA_8B, x) if name == "by a table" else _next_layer(name, x)

    peer = "embedding and apply" if name == "first layer" else "apply"
    words = f"plain torch, {name}, {tokens} tokens, {dtype}, against transformers' {peer}"
    return BenchmarkRow(GROUP, words, build, NEEDED, backend="reference", timer=_without_library)


def fallback_rows() -> Iterator[BenchmarkRow]:
    """The first layer of a model, the next layers in each form of the call, and a caller's table."""
    for dtype, tokens in product(("bf16", "fp32"), (1, 32, 512)):
        for name in ("first layer", *FORMS, "by a table"):
            yield _row(name, tokens, dtype)
