"""The budgets of the CPU path: the rows with a speed that must be reached."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import rope_kernels as rk
from rope_kernels.backends import native

from . import peers
from .append import append_rows
from .fallback import fallback_rows
from .norms import norm_rows
from .ours import FLOORS, FORMS, TimedCall, floor, ours
from .row import BenchmarkRow, facts_of
from .shapes import DECODE_1, DECODE_32, LLAMA_8B, Shape, inputs

__all__ = ["budget_rows"]

GROUP = "budgets"


def _size(shape: Shape) -> str:
    return str(shape) if shape.tokens == 1 else f"{shape.tokens} tokens"


def _row(form: str, shape: Shape, against: str, needed: float, dtype: str = "bf16", isa: str = "") -> BenchmarkRow:
    """Our call in one form against a peer, or against the memory floor of that form."""

    def build() -> tuple[TimedCall, TimedCall]:
        x = inputs(LLAMA_8B, shape, dtype)
        calls = {"transformers": peers.transformers, "vLLM": peers.vllm, "onnxruntime": peers.onnxruntime}
        return ours(form, LLAMA_8B, x), calls[against](LLAMA_8B, x) if against in calls else floor(form, x)

    words = [f"{form}, {_size(shape)}", f", {dtype}" if dtype != "bf16" else "", f", against {against}"]
    facts = {} if isa else facts_of(LLAMA_8B, shape, dtype, form, against)
    return BenchmarkRow(GROUP, "".join(words) + (f", {isa} forced" if isa else ""), build, needed, isa=isa, facts=facts)


def _floor_rows() -> Iterator[BenchmarkRow]:
    """Against the memory floors."""
    for form, shape, needed in (
        ("in place", Shape(1, 4096), 0.95), ("in place", Shape(1, 32768), 0.95),
        ("out=", Shape(1, 32768), 1 / 0.8), ("allocating", Shape(1, 4096), 1 / 1.1),
    ):  # fmt: skip
        yield _row(form, shape, FLOORS[form][0], needed)


def _transformers_rows() -> Iterator[BenchmarkRow]:
    """Our public call, with its Python, against transformers eager."""
    for form, shape, needed in (
        ("in place", Shape(1, 4096), 20), ("allocating", Shape(1, 4096), 6), ("in place", Shape(1, 32768), 20),
        ("allocating", Shape(1, 32768), 6), ("in place", Shape(1, 512), 10), ("in place", DECODE_32, 12),
        ("in place", DECODE_1, 10), ("allocating", DECODE_1, 7),
    ):  # fmt: skip
        yield _row(form, shape, "transformers", needed)

    def build() -> tuple[TimedCall, TimedCall]:
        q, k, positions = inputs(LLAMA_8B, DECODE_1)
        x = q.requires_grad_(), k.requires_grad_(), positions
        return FORMS["allocating"](LLAMA_8B.config, *x), peers.transformers(LLAMA_8B, x)

    yield BenchmarkRow(GROUP, "with a gradient needed, decode batch 1, against transformers", build, 5)


def _vllm_rows() -> Iterator[BenchmarkRow]:
    """Against vLLM's CPU operator, in place like ours; only our instruction set can be forced."""
    for shape, needed in ((Shape(1, 4096), 1.8), (Shape(1, 32768), 1.8), (DECODE_32, 2.0)):
        yield _row("in place", shape, "vLLM", needed)
    for isa, needed in (("avx2", 1.5), ("portable", 1.0)):
        if isa in native.isas():
            yield _row("in place", Shape(1, 4096), "vLLM", needed, isa=isa)


def _packed() -> tuple[TimedCall, TimedCall]:
    """1000 packed sequences against one of the same number of tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 4097, (1000,), generator=generator)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    config = rk.RopeConfig(head_dim=64)
    q, k = (torch.randn(int(bounds[-1]), heads, 64, dtype=torch.bfloat16) for heads in (8, 2))
    last = slice(int(bounds[-2]), None)
    wanted = rk.apply_rope(q[None, last], k[None, last], torch.arange(int(lengths[-1])), config)
    got = rk.apply_rope(q, k, None, config, layout="thd", cu_seqlens=bounds)
    assert all(torch.equal(a[last], b[0]) for a, b in zip(got, wanted, strict=True) if a is not None and b is not None)

    def call(cu_seqlens: torch.Tensor) -> TimedCall:
        return lambda: rk.apply_rope_(q, k, None, config, layout="thd", cu_seqlens=cu_seqlens)

    return call(bounds), call(bounds[[0, -1]])


def _thread_rows() -> Iterator[BenchmarkRow]:
    """Two threads against one, and against the floor on two: one thread may use all of the bandwidth already."""

    def build(with_floor: bool) -> tuple[TimedCall, TimedCall]:
        x = inputs(LLAMA_8B, Shape(1, 32768))
        call = ours("in place", LLAMA_8B, x)
        return call, floor("in place", x) if with_floor else call

    name = "in place, 32768 tokens, 2 threads"
    yield BenchmarkRow(GROUP, f"{name}, against 1", lambda: build(False), 1.8, threads=(2, 1))
    yield BenchmarkRow(GROUP, f"{name}, against {FLOORS['in place'][0]}", lambda: build(True), 0.95, threads=(2, 2))


def budget_rows() -> list[BenchmarkRow]:
    """Every budget of the CPU path."""
    return [
        *_floor_rows(),
        *_transformers_rows(),
        *_vllm_rows(),
        _row("out=", Shape(1, 4096), "onnxruntime", 1.3, dtype="fp32"),
        BenchmarkRow(GROUP, "in place, 1000 packed sequences, against one", _packed, 0.9),
        *_thread_rows(),
        *fallback_rows(),
        *norm_rows(),
        *append_rows(),
    ]
