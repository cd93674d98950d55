"""What a call costs against tokens, heads, head_dim and threads: times beside a base size's, and the log-log slope."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from ours import Call, ours
from rows import Result, Row
from shapes import LLAMA_8B, Model, Shape, inputs

__all__ = ["Slope", "complexity_rows", "slopes"]

BASE = {"tokens": 4096, "heads": 32, "head_dim": 128, "threads": 1}
SIZES = {
    "tokens": (256, 512, 1024, 2048, 8192, 16384, 32768),
    "heads": (4, 8, 16, 64, 128),
    "head_dim": (32, 64, 256, 512),
}
EXPECTED = {"tokens": 1.0, "heads": 1.0, "head_dim": 1.0, "threads": -1.0}
"""Slopes of a cost that is linear in the elements and shared by the threads."""
Slope = tuple[float, int, int]
"""The slope, and the sizes between which it was fitted."""


def _call(axis: str, size: int) -> Call:
    """In place, bf16, with one of the base sizes replaced; k has a quarter of q's heads."""
    sizes = BASE | {axis: size}
    source = dict(LLAMA_8B.source) | {
        "hidden_size": sizes["heads"] * sizes["head_dim"], "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"] // 4, "head_dim": sizes["head_dim"],
    }  # fmt: skip
    model = Model(f"{axis} {size}", source, sizes["heads"], sizes["heads"] // 4)
    return ours("in place", model, inputs(model, Shape(1, sizes["tokens"])))


def _row(axis: str, size: int) -> Row:
    base = BASE[axis]

    def build() -> tuple[Call, Call]:
        peer = _call(axis, base)
        return (peer if axis == "threads" else _call(axis, size)), peer

    threads = (size, 1) if axis == "threads" else (1, 1)
    facts = dict(axis=axis, size=size, base=base)
    return Row("complexity", f"in place, {axis} {size} against {base}", build, threads=threads, facts=facts)


def complexity_rows() -> Iterator[Row]:
    """Every size against the base size, in place, Llama-8B heads in bf16."""
    for axis, sizes in SIZES.items():
        for size in sizes:
            yield _row(axis, size)
    threads = 2
    while threads <= (os.cpu_count() or 1):
        yield _row("threads", threads)
        threads *= 2


def slopes(results: Iterable[Result]) -> dict[str, Slope]:
    """By axis, the least-squares slope of log time against log size, the base size being a point of its own."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        if result.question == "complexity":
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
