"""The report's pictures: time per token, share of the memory floor, errors by position, bytes kept for backward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measurements import Run
from ours import FLOORS
from shapes import LLAMA_8B

__all__ = ["PLOTS", "draw_all"]

_COLOURS = ("#1d6fb8", "#2a9d8f", "#7b4fb5", "#c8442f", "#b07d2b", "#4c566a", "#d1669b", "#8a8d91")
_GREY = "#4c566a"


def _lines(axes: Any, lines: dict[str, dict[float, float]], marker: str = "o") -> None:
    for (label, points), colour in zip(sorted(lines.items()), _COLOURS, strict=False):
        xs = sorted(points)
        axes.plot(xs, [points[x] for x in xs], marker=marker, markersize=5, linewidth=2, color=colour, label=label)
    outside = dict(loc="center left", bbox_to_anchor=(1, 0.5)) if len(lines) > 3 else {}
    axes.legend(frameon=False, fontsize=9, **outside)


def time_per_token(run: Run, axes: Any) -> None:
    """Ours in each form, and the peers, one thread."""
    times: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in run.of("budgets", "peers", "floors", model=str(LLAMA_8B), dtype="bf16"):
        tokens = r.facts["tokens"]
        times[f"rope_kernels, {r.facts['form']}"][tokens].append(r.ours_seconds / tokens)
        if r.question != "floors" and r.facts["peer"] not in _floors():
            times[r.facts["peer"]][tokens].append(r.peer_seconds / tokens)
    _lines(axes, {name: {x: 1e9 * min(found) for x, found in points.items()} for name, points in times.items()})
    axes.set(xscale="log", yscale="log", xlabel="tokens in a call", ylabel="ns per token",
             title=f"Time per token, {LLAMA_8B}, bf16, one CPU thread")  # fmt: skip


def _floors() -> set[str]:
    return {name for name, _ in FLOORS.values()}


def memory_floor(run: Run, axes: Any) -> None:
    """Our speed against a pass over the same bytes."""
    shares: dict[str, dict[float, float]] = defaultdict(dict)
    for r in run.of("budgets", "floors", model=str(LLAMA_8B), dtype="bf16"):
        if r.facts["peer"] in _floors():
            shares[f"{r.facts['form']} against {r.facts['peer']}"][r.facts["tokens"]] = r.speed
    _lines(axes, shares)
    axes.axhline(1, color=_GREY, linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="tokens in a call", ylabel="speed, floor = 1", ylim=(0, None),
             title=f"Share of the memory floor, {LLAMA_8B}, bf16, one CPU thread")  # fmt: skip


def errors(run: Run, axes: Any) -> None:
    """Against exact phases, fp32 inputs."""
    found = run.records["errors"]
    lines = {"rope_kernels": dict(zip(found["positions"], found["ours"], strict=True))}
    if found["transformers"]:
        lines["transformers"] = dict(zip(found["positions"], found["transformers"], strict=True))
    _lines(axes, lines, marker="")
    axes.set(yscale="log", xlabel="position", ylabel="max |y − exact| / max |x|",
             title=f"Error against position, {found['model']}, fp32")  # fmt: skip
    axes.set_xscale("log", base=2)


def saved(run: Run, axes: Any) -> None:
    """Bytes per token between forward and backward."""
    found = [way for way in run.records["saved"] if "bytes" in way]
    names, sizes = [way["way"] for way in found], [way["bytes"] / way["tokens"] for way in found]
    bars = axes.barh(names, sizes, color=_COLOURS[0])
    axes.bar_label(bars, [f"{size:,.0f}" for size in sizes], padding=4)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(xlabel="bytes per token", title=f"Kept for the backward pass besides q and k, {LLAMA_8B}, bf16")


PLOTS: dict[str, tuple[str, Callable[[Run, Any], None]]] = {
    "time_per_token": ("Time per token against the length of a call.", time_per_token),
    "memory_floor": ("Our speed as a share of what memory allows.", memory_floor),
    "errors": ("Errors by position, against exact phases.", errors),
    "saved": ("What stays between forward and backward.", saved),
}


def draw_all(run: Run, folder: Path) -> dict[str, Path]:
    """Write a PNG file per plot, by name."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, (_, draw) in PLOTS.items():
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        draw(run, axes)
        axes.grid(True, which="major", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        written[name] = folder / f"{name}.png"
        figure.savefig(written[name], dpi=110, metadata={"Software": None})
    return written
