"""How fast a device is, measured on that device: bf16, heads of Llama 8B, with nothing of the tensors in its L2 cache.

The times are of the device alone: many launches are captured in one CUDA graph, and its replays are timed. Each launch
has tensors of its own, which together are larger than the L2 cache, so that each finds its tensors in memory.

GB/s count what must move: q and k read once and written once, and the positions. Beside them stand a copy of the same q
and k into other memory and, for a call in place, a pass over them in place (bitwise_not_). All four are one launch: q
and k lie beside each other in one buffer, over which the copy and the pass go at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import rope_kernels as rk

from .outcomes import Check, Figures, Setup

__all__ = ["SHAPES", "Times", "calls_of", "config", "named", "replays_of", "speed_checks", "tensors"]

Q_HEADS, K_HEADS, HEAD_DIM = 32, 8, 128
SHAPES = (("prefill", 1, 4096), ("prefill", 1, 32768), ("decode", 1, 1), ("decode", 32, 1), ("decode", 256, 1))
"""(phase, batch, tokens)"""
WARM_UPS, ROUNDS = 3, 21
CACHES = 2
"""How many times the L2 cache the tensors of all launches fill."""
MOST_LAUNCHES = 16384
"""Of one graph: enough for one token with an L2 cache of 80 MB."""
L2_BYTES = 64 * 2**20
"""Where the device does not tell."""
Call = Callable[[], object]


class Times(NamedTuple):
    """Milliseconds of one launch: the median, and where the middle three fifths begin and end."""

    median: float
    low: float
    high: float


Timer = Callable[[Sequence[Call]], Times]


class Tensors(NamedTuple):
    """What one launch works on; ``q`` and ``k`` are views of ``both``, the outputs of ``both_out``."""

    both: Tensor
    q: Tensor
    k: Tensor
    positions: Tensor
    both_out: Tensor
    q_out: Tensor
    k_out: Tensor


def config() -> rk.RopeConfig:
    """Of Llama 3.1 8B."""
    return rk.RopeConfig(
        head_dim=HEAD_DIM, rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192, max_position_embeddings=131072,
    )  # fmt: skip


def named(phase: str, batch: int, tokens: int) -> str:
    """A shape in a check's name."""
    return f"{phase} {tokens if phase == 'prefill' else batch}"


def tensors(batch: int, tokens: int, device: torch.device) -> Tensors:
    """bf16 q (batch, tokens, 32, 128) and k (batch, tokens, 8, 128), int64 positions (batch, tokens)."""

    def halves(both: Tensor) -> tuple[Tensor, Tensor]:
        rows = batch * tokens * HEAD_DIM
        q, k = both.split((rows * Q_HEADS, rows * K_HEADS))
        return q.view(batch, tokens, Q_HEADS, HEAD_DIM), k.view(batch, tokens, K_HEADS, HEAD_DIM)

    both = torch.randn(batch * tokens * (Q_HEADS + K_HEADS) * HEAD_DIM, device=device).bfloat16()
    positions = torch.arange(tokens, device=device)[None] + 1000 * torch.arange(batch, device=device)[:, None]
    both_out = torch.empty_like(both)
    return Tensors(both, *halves(both), positions, both_out, *halves(both_out))


def launches(batch: int, tokens: int, device: torch.device) -> int:
    """How many sets of tensors fill the L2 cache :data:`CACHES` times."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else L2_BYTES
    in_place = 2 * batch * tokens * (Q_HEADS + K_HEADS) * HEAD_DIM
    return min(MOST_LAUNCHES, max(1, math.ceil(CACHES * l2 / in_place)))


def calls_of(x: Tensors) -> dict[str, Call]:
    """Our calls, and a plain pass over the same memory for each; every one is one launch."""
    cfg = config()
    return {
        "out": lambda: rk.apply_rope(x.q, x.k, x.positions, cfg, out=(x.q_out, x.k_out)),
        "copy": lambda: x.both_out.copy_(x.both),
        "in_place": lambda: rk.apply_rope_(x.q, x.k, x.positions, cfg),
        "pass": lambda: x.both.view(torch.int32).bitwise_not_(),
    }


def replays_of(calls: Sequence[Call], device: torch.device) -> Times:
    """Capture all of the calls in one graph, and time its replays."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(WARM_UPS + ROUNDS):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    tenths = statistics.quantiles(times[WARM_UPS:], n=10)
    return Times(tenths[4], tenths[1], tenths[7])


def measured(batch: int, tokens: int, backend: str, device: torch.device, time: Timer) -> Figures:
    """The figures of one shape."""
    made = [calls_of(tensors(batch, tokens, device)) for _ in range(launches(batch, tokens, device))]
    times = {}
    with rk.use_backend(backend):
        for name in made[0]:
            times[name] = time([calls[name] for calls in made])
    both_ways = 4 * batch * tokens * (Q_HEADS + K_HEADS) * HEAD_DIM
    figures: Figures = {
        "tokens": tokens,
        "batch": batch,
        "launches": len(made),
        "out_time_over_copy": times["out"].median / times["copy"].median,
        "in_place_time_over_pass": times["in_place"].median / times["pass"].median,
    }
    for name, each in times.items():
        nbytes = both_ways + (8 * batch * tokens if name in ("out", "in_place") else 0)
        figures |= {f"{name}_ms": each.median, f"{name}_ms_20": each.low, f"{name}_ms_80": each.high}
        figures |= {f"{name}_bytes": nbytes, f"{name}_gb_per_s": nbytes / each.median / 1e6}
    return figures


def speed_checks(setup: Setup, backend: str, time: Timer | None = None) -> Iterator[Check]:
    """Each shape, for one backend. Nothing is asked of the figures."""
    device = setup.device
    timer = time or partial(replays_of, device=device)
    for phase, batch, tokens in SHAPES:
        run = partial(measured, batch, tokens, backend, device, timer)
        yield Check(f"speed/{backend}/{named(phase, batch, tokens)}", run)
