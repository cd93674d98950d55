"""The plots of the report: time per token, share of the memory floor, and errors by position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rope_kernels.cli.plotting import GREY, LIBRARIES, draw_errors, style, svg
from rope_kernels.measuring.curves import Errors

from ..rows.ours import FLOORS, FORMS
from ..rows.shapes import LLAMA_8B
from .measurements import Run

__all__ = ["PLOTS", "draw_all", "style_of"]

_LINES = dict(zip(FORMS, ("-", "--", ":"), strict=True))
_FLOORS = {name for name, _ in FLOORS.values()}


def style_of(label: str) -> dict[str, str]:
    """The library's colour (grey for one without), and a line style per form or variant."""
    library, _, variant = label.partition(", ")
    if library == "hand-fused":
        library, variant = "torch.compile", ""
    return {"color": LIBRARIES.get(library, GREY), "linestyle": _LINES.get(variant, "--" if variant else "-")}


def _draw_lines(axes: Any, lines: Mapping[str, Mapping[float, float]], styles: Mapping[str, Mapping[str, str]]) -> None:
    for label, points in sorted(lines.items()):
        xs = sorted(points)
        axes.plot(xs, [points[x] for x in xs], marker="o", markersize=5, linewidth=2, label=label, **styles[label])
    outside = dict(loc="center left", bbox_to_anchor=(1, 0.5)) if len(lines) > 3 else {}
    if lines:
        axes.legend(frameon=False, fontsize=9, **outside)


def time_per_token(run: Run, axes: Any) -> None:
    """Our forms and the peers, one thread."""
    times: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in run.of("budgets", "peers", "floors", model=str(LLAMA_8B), dtype="bf16"):
        tokens = r.facts["tokens"]
        times[f"rope_kernels, {r.facts['form']}"][tokens].append(r.ours_seconds / tokens)
        if r.facts["peer"] not in _FLOORS:
            times[r.facts["peer"]][tokens].append(r.peer_seconds / tokens)
    lines = {label: {x: 1e9 * min(found) for x, found in points.items()} for label, points in times.items()}
    _draw_lines(axes, lines, {label: style_of(label) for label in lines})
    axes.set(xscale="log", yscale="log", xlabel="tokens in a call", ylabel="ns per token",
             title=f"Time per token, {LLAMA_8B}, bf16, one CPU thread")  # fmt: skip


def memory_floor(run: Run, axes: Any) -> None:
    """Our speed as a multiple of a plain pass over the same bytes."""
    shares: dict[str, dict[float, float]] = defaultdict(dict)
    for r in run.of("budgets", "floors", model=str(LLAMA_8B), dtype="bf16"):
        if r.facts["peer"] in _FLOORS:
            shares[f"{r.facts['form']} against {r.facts['peer']}"][r.facts["tokens"]] = r.speed
    _draw_lines(axes, shares, {label: style_of(f"rope_kernels, {label.split(' against ')[0]}") for label in shares})
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="tokens in a call", ylabel="speed, floor = 1", ylim=(0, None),
             title=f"Share of the memory floor, {LLAMA_8B}, bf16, one CPU thread")  # fmt: skip


def errors(run: Run, axes: Any) -> None:
    """Errors of fp32 results by position."""
    found = dict(run.records["errors"])
    axes.set_title(f"Error against position, {found.pop('model')}, fp32")
    draw_errors(axes, Errors(**found), LLAMA_8B.config.max_position_embeddings)


PLOTS: dict[str, tuple[str, Callable[[Run, Any], None]]] = {
    "time_per_token": ("Time per token against the length of a call.", time_per_token),
    "memory_floor": ("Our speed as a share of the memory floor.", memory_floor),
    "errors": ("Errors by position, against exact phases.", errors),
}


def draw_all(run: Run, folder: Path) -> dict[str, Path]:
    """Write an SVG file per plot; the paths by name."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, (_, draw) in PLOTS.items():

        def make(draw: Callable[[Run, Any], None] = draw) -> Figure:
            figure = Figure(figsize=(9, 5), layout="constrained")
            axes = figure.subplots()
            draw(run, axes)
            style(axes)
            return figure

        written[name] = folder / f"{name}.svg"
        written[name].write_text(svg(make), encoding="utf-8")
    return written
