"""What this machine allows of the CPU budgets: the same peers beside memory alone, and beside our kernels alone.

Where a floor is no faster than what a budget asks of us, the machine's memory decides, and not the kernel; where the
kernel on data that never leaves the cache is no faster, its arithmetic does.
"""

from __future__ import annotations

from collections.abc import Iterator

import peers
from ours import FLOORS, Call, floor, ours
from peers import Peer
from rope_kernels.backends import native
from rows import Row
from shapes import LLAMA_8B, Shape, inputs

__all__ = ["QUESTION", "limit_rows"]

QUESTION = "limits"
CACHED = 64
"""Tokens whose q and k (640 KiB in bf16) stay in the second-level cache of a server's core."""


def _memory(form: str, shape: Shape, dtype: str, against: str, peer: Peer) -> Row:
    """The floor of a form, in our place."""

    def build() -> tuple[Call, Call]:
        x = inputs(LLAMA_8B, shape, dtype)
        return floor(form, x), peer(LLAMA_8B, x)

    words = f", {dtype}" if dtype != "bf16" else ""
    return Row(QUESTION, f"{FLOORS[form][0]}, {shape.tokens} tokens{words}, against {against}", build)


def _kernel(shape: Shape, isa: str = "") -> Row:
    """As many tokens as the peer rotates, of which we rotate the same few again and again."""

    def build() -> tuple[Call, Call]:
        few = ours("in place", LLAMA_8B, inputs(LLAMA_8B, Shape(1, CACHED)))

        def call() -> None:
            for _ in range(shape.tokens // CACHED):
                few()

        return call, peers.vllm(LLAMA_8B, inputs(LLAMA_8B, shape))

    forced = f", {isa} forced" if isa else ""
    return Row(QUESTION, f"in place, {CACHED} tokens in the cache, {shape.tokens} in all, against vLLM{forced}", build,
               isa=isa)  # fmt: skip


def _threads() -> Row:
    def build() -> tuple[Call, Call]:
        call = floor("in place", inputs(LLAMA_8B, Shape(1, 32768)))
        return call, call

    return Row(QUESTION, f"{FLOORS['in place'][0]}, 32768 tokens, 2 threads, against 1", build, threads=(2, 1))


def limit_rows() -> Iterator[Row]:
    """A row beside each budget that memory or arithmetic can keep out of reach, none of them built."""
    for tokens in (4096, 32768):
        yield _memory("in place", Shape(1, tokens), "bf16", "vLLM", peers.vllm)
    for isa in ("", *(isa for isa in ("avx2", "portable") if isa in native.isas())):
        yield _kernel(Shape(1, 4096), isa)
    yield _memory("out=", Shape(1, 4096), "fp32", "onnxruntime", peers.onnxruntime)
    yield _threads()
