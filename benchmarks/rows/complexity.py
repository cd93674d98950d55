"""How the time of a call grows with tokens, heads, head_dim and threads: ratios to a base size, and log-log slopes."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from .ours import TimedCall, ours
from .row import BenchmarkRow, RowResult
from .shapes import LLAMA_8B, Model, Shape, inputs

__all__ = ["Slope", "complexity_rows", "slopes"]

BASE = {"tokens": 4096, "heads": 32, "head_dim": 128, "threads": 1}
SIZES = {
    "tokens": (256, 512, 1024, 2048, 8192, 16384, 32768),
    "heads": (4, 8, 16, 64, 128),
    "head_dim": (32, 64, 256, 512),
}
EXPECTED = {"tokens": 1.0, "heads": 1.0, "head_dim": 1.0, "threads": -1.0}
"""Slopes if the time is linear in the elements and inversely linear in the threads."""
Slope = tuple[float, int, int]
"""The slope, and the smallest and largest size of the fit."""


def _call(axis: str, size: int) -> TimedCall:
    """Our call in place, bf16, with one base size replaced; k has a quarter of q's heads."""
    sizes = BASE | {axis: size}
    source = dict(LLAMA_8B.source) | {
        "hidden_size": sizes["heads"] * sizes["head_dim"], "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"] // 4, "head_dim": sizes["head_dim"],
    }  # fmt: skip
    model = Model(f"{axis} {size}", source, sizes["heads"], sizes["heads"] // 4)
    return ours("in place", model, inputs(model, Shape(1, sizes["tokens"])))


def _row(axis: str, size: int) -> BenchmarkRow:
    base = BASE[axis]

    def build() -> tuple[TimedCall, TimedCall]:
        peer = _call(axis, base)
        return (peer if axis == "threads" else _call(axis, size)), peer

    threads = (size, 1) if axis == "threads" else (1, 1)
    facts = dict(axis=axis, size=size, base=base)
    return BenchmarkRow("complexity", f"in place, {axis} {size} against {base}", build, threads=threads, facts=facts)


def complexity_rows() -> Iterator[BenchmarkRow]:
    """Every size against the base size, in place, Llama-8B heads in bf16."""
    for axis, sizes in SIZES.items():
        for size in sizes:
            yield _row(axis, size)
    threads = 2
    while threads <= (os.cpu_count() or 1):
        yield _row("threads", threads)
        threads *= 2


def slopes(results: Iterable[RowResult]) -> dict[str, Slope]:
    """By axis, the least-squares slope of log time against log size, with the base size as a point."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        if result.group == "complexity":
            facts = result.facts
            points[facts["axis"]].append((facts["size"], 1 / result.speed))
            if (facts["base"], 1.0) not in points[facts["axis"]]:
                points[facts["axis"]].append((facts["base"], 1.0))
    return {axis: (_slope(found), min(found)[0], max(found)[0]) for axis, found in points.items()}


def _slope(points: list[tuple[int, float]]) -> float:
    xs, ys = ([math.log(point[i]) for point in points] for i in (0, 1))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)
