"""The machine's limits for the CPU budgets: the same peers beside a memory floor, and beside our kernels in cache.

If a floor is no faster than a budget asks, memory is the limit and not the kernel. If the kernel on data in the cache
is no faster, its arithmetic is the limit.
"""

from __future__ import annotations

from collections.abc import Iterator

from rope_kernels.backends import native

from . import peers
from .ours import FLOORS, TimedCall, floor, ours
from .peers import Peer
from .row import BenchmarkRow
from .shapes import LLAMA_8B, Shape, inputs

__all__ = ["GROUP", "limit_rows"]

GROUP = "limits"
CACHED = 64
"""Tokens whose q and k (640 KiB in bf16) stay in the second-level cache of a server's core."""


def _memory(form: str, shape: Shape, dtype: str, against: str, peer: Peer) -> BenchmarkRow:
    """The memory floor of a form instead of our call."""

    def build() -> tuple[TimedCall, TimedCall]:
        x = inputs(LLAMA_8B, shape, dtype)
        return floor(form, x), peer(LLAMA_8B, x)

    words = f", {dtype}" if dtype != "bf16" else ""
    return BenchmarkRow(GROUP, f"{FLOORS[form][0]}, {shape.tokens} tokens{words}, against {against}", build)


def _kernel(shape: Shape, isa: str = "") -> BenchmarkRow:
    """Our call on a few cached tokens, repeated until it has rotated as many as the peer."""

    def build() -> tuple[TimedCall, TimedCall]:
        few = ours("in place", LLAMA_8B, inputs(LLAMA_8B, Shape(1, CACHED)))

        def call() -> None:
            for _ in range(shape.tokens // CACHED):
                few()

        return call, peers.vllm(LLAMA_8B, inputs(LLAMA_8B, shape))

    forced = f", {isa} forced" if isa else ""
    name = f"in place, {CACHED} tokens in the cache, {shape.tokens} in all, against vLLM{forced}"
    return BenchmarkRow(GROUP, name, build, isa=isa)


def _threads() -> BenchmarkRow:
    def build() -> tuple[TimedCall, TimedCall]:
        call = floor("in place", inputs(LLAMA_8B, Shape(1, 32768)))
        return call, call

    return BenchmarkRow(GROUP, f"{FLOORS['in place'][0]}, 32768 tokens, 2 threads, against 1", build, threads=(2, 1))


def limit_rows() -> Iterator[BenchmarkRow]:
    """A row for each budget that memory or arithmetic can put out of reach."""
    for tokens in (4096, 32768):
        yield _memory("in place", Shape(1, tokens), "bf16", "vLLM", peers.vllm)
    for isa in ("", *(isa for isa in ("avx2", "portable") if isa in native.isas())):
        yield _kernel(Shape(1, 4096), isa)
    yield _memory("out=", Shape(1, 4096), "fp32", "onnxruntime", peers.onnxruntime)
    yield _threads()
