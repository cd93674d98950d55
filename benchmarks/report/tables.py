"""The tables of the report, made from a run's data alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..rows import cpu_limits
from ..rows.budgets import budget_rows
from ..rows.complexity import BASE, EXPECTED, slopes
from ..rows.row import RowResult
from ..rows.shapes import LLAMA_8B, MODELS, SHAPES
from ..rows.static_budgets import static_budgets
from ..units import elapsed
from .measurements import Run

__all__ = [
    "NO_GPU",
    "budgets",
    "complexity",
    "cuda",
    "gradient",
    "limits",
    "markdown",
    "missing",
    "rotations",
    "whole_model",
]

NO_GPU = "no GPU has run this"
_WITHOUT_STATIC = "not measured: Triton is not installed, or its row was left out"
Cells = Sequence[str]


def markdown(columns: Cells, rows: Iterable[Cells]) -> str:
    """A Markdown table with its first column to the left and the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def megabytes(count: float | None) -> str:
    """In powers of ten; ``None`` is a system that cannot tell."""
    return "not known here" if count is None else f"{count / 1e6:.1f} MB"


def _speed(result: RowResult) -> list[str]:
    return [f"{result.speed:.2f}x", f"{result.low:.2f}–{result.high:.2f}"]


def _met(value: bool | None) -> str:
    return "met" if value else "**not met**"


def budgets(run: Run) -> str:
    """Every budget, its measured speed, and whether it was met."""
    rows = []
    for row in budget_rows():
        asked, result = f"≥ {row.needed:.3g}x", run.results.get(row.name)
        if result is None:
            rows.append([row.name, asked, "", "", f"not measured: {run.missing.get(row.name, 'not in this run')}"])
        else:
            rows.append([row.name, asked, *_speed(result), _met(result.met)])
    text = "Speeds are multiples of the speed of the call named after “against”.\n\n"
    text += markdown(("CPU", "asked", "measured", "middle half", ""), rows)
    text += "\nThe GPU kernels' machine code, where nothing is timed (`python -m benchmarks.static_gpu`):\n\n"
    static = static_budgets(run.records.get("static", []))
    text += markdown(("GPU, bf16", "worst case", ""), ([name, value, _met(met)] for name, value, met in static))
    if not static:
        text += f"| all static budgets of the GPU kernels | | {_WITHOUT_STATIC} |\n"
    elif not any(name.startswith("cuda") for name, _, _ in static):
        text += "| the CUDA kernels | | not measured: there is no nvcc |\n"
    return text


def limits(run: Run) -> str:
    """The limits that the run's machine sets to the budgets."""
    text = (
        "The peers of the budgets beside a plain pass over the same bytes, and beside our kernels on cached data.\n"
        "If one of these is no faster than a budget asks, this machine's memory or our arithmetic is the limit.\n\n"
    )
    rows = ([r.name, *_speed(r)] for r in run.of(cpu_limits.GROUP))
    return text + markdown(("instead of our call", "speed", "middle half"), rows)


def rotations(run: Run, groups: Sequence[str], peers: Sequence[str] | None = None) -> str:
    """The rows with a shape: times per call and their ratio."""
    keys = ("model", "dtype", "shape", "form", "peer")
    order = {str(model): i for i, model in enumerate(MODELS)}, {str(shape): i for i, shape in enumerate(SHAPES)}
    found = [r for r in run.of(*groups) if "shape" in r.facts and (peers is None or r.facts["peer"] in peers)]
    found.sort(key=lambda r: (r.facts["peer"], order[0].get(r.facts["model"], 9), r.facts["dtype"], r.facts["form"],
                              order[1].get(r.facts["shape"], 9)))  # fmt: skip
    rows = (
        [*(r.facts[key] for key in keys), *_speed(r), elapsed(r.ours_seconds), elapsed(r.peer_seconds), str(r.rounds)]
        for r in found
    )
    columns = (*keys[:3], "ours", "against", "speed", "middle half", "ours per call", "theirs", "rounds")
    return markdown(columns, rows)


def gradient(run: Run) -> str:
    """Forward with backward, and the bytes saved between the two."""
    text = rotations(run, ["gradient"])
    rows = []
    for way in run.records.get("saved", []):
        kept = way.get("bytes")
        rows.append([way["way"], f"not measured: {way['missing']}" if kept is None else f"{kept / way['tokens']:,.0f}"])
    text += f"\nBytes per token saved between forward and backward, besides q and k, {LLAMA_8B} in bf16:\n\n"
    return text + markdown(("way", "bytes per token"), rows)


def whole_model(run: Run) -> str:
    """Tokens per second and peak memory."""
    rows = []
    for r in run.of("whole model"):
        tokens = r.facts["tokens"]
        rows.append(
            [
                r.name, *_speed(r), *(f"{tokens / s:,.0f}" for s in (r.ours_seconds, r.peer_seconds)),
                *(megabytes(r.facts.get(f"{side}_peak_bytes")) for side in ("ours", "peer")),
            ]
        )  # fmt: skip
    columns = ("step", "speed", "middle half", "tokens/s, patched", "tokens/s, unpatched", "peak memory, patched",
               "peak memory, unpatched")  # fmt: skip
    models = " and ".join(sorted({r.facts["model"] for r in run.of("whole model")}))
    peak = "Peak memory is what one step adds."
    return f"{models}. {peak}\n\n{markdown(columns, rows)}"


def complexity(run: Run) -> str:
    """The slopes, and the points they were fitted to."""
    found = slopes(run.results.values())
    lines = [[axis, f"{low} to {high}", f"{slope:.3f}", f"{EXPECTED[axis]:g}"]
             for axis, (slope, low, high) in found.items()]  # fmt: skip
    text = markdown(("in place, bf16, against", "sizes", "slope", "if linear"), lines)
    rows = [
        [r.facts["axis"], str(r.facts["size"]), f"{1 / r.speed:.3f}", f"{1 / r.high:.3f}–{1 / r.low:.3f}"]
        for r in run.of("complexity")
    ]
    base = ", ".join(f"{name} {value}" for name, value in BASE.items())
    text += f"\nTimes as multiples of the time of {base}; the slopes are those of log time against log size:\n\n"
    return text + markdown(("axis", "size", "time", "middle half"), rows)


def cuda(run: Run) -> str:
    """The rows of a CUDA device."""
    rows = [[r.name, *_speed(r), f"{r.facts['bytes'] / r.ours_seconds / 1e9:,.0f}",
             f"{r.facts['bytes'] / r.peer_seconds / 1e9:,.0f}"] for r in run.of("cuda")]  # fmt: skip
    if not rows:
        return f"Speed of the GPU kernels: {NO_GPU}.\n"
    return markdown(("cold L2", "speed", "middle half", "GB/s, ours", "GB/s, theirs"), rows)


def missing(run: Run) -> str:
    """The rows that were left out, and why."""
    reasons: dict[str, int] = {}
    for reason in run.missing.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    if not reasons:
        return "Every peer was installed.\n"
    return markdown(("not installed", "rows left out"), ([reason, str(count)] for reason, count in reasons.items()))
