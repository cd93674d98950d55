"""Plots of wavelengths by pair and of errors by position, for the command line, the docs and the benchmarks."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..config import RopeConfig
from ..measuring.accuracy import CONTRACT
from ..measuring.catalog import shipped
from ..measuring.curves import Curves, Errors, Ladder, errors_by_position, wavelengths
from ..measuring.models import shipped_layers

__all__ = ["GREY", "LIBRARIES", "draw", "draw_curves", "draw_errors", "draw_wavelengths", "style", "svg"]

LIBRARIES = {
    "rope_kernels": "#1d6fb8",
    "transformers": "#c8442f",
    "torch.compile": "#7b4fb5",
    "vLLM": "#2a9d8f",
}
"""The colour of each library in every plot."""
GREY = "#4c566a"

# Shipped model, layer type and colour of each rope type.
_CURVES = (
    ("llama-2-7b", "full_attention", "#4c566a"),
    ("deepseek-coder-6.7b", "full_attention", "#b07d2b"),
    ("internlm2-chat-7b", "full_attention", "#2a9d8f"),
    ("qwen2.5-7b-yarn", "full_attention", "#1d6fb8"),
    ("llama-3.1-8b", "full_attention", "#7b4fb5"),
    ("phi-3.5-mini", "full_attention", "#c8442f"),
    ("gemma-4-text", "full_attention", "#d1669b"),
)
_OURS, _THEIRS = LIBRARIES["rope_kernels"], LIBRARIES["transformers"]
_SECOND = "#6fb1e8"  # of the longer sequence lengths of a config
_LEGEND = "dot: one turn takes the whole context\nsquare: the pairs after it are not rotated"
_ERROR_MODEL = "llama-3.1-8b"
_SVG: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rope-kernels",
    "font.family": "sans-serif",
    "font.size": 10,
}


def draw_curves(found: Sequence[Curves], path: Path, title: str) -> None:
    """Write a PNG file with two panels per layer type: wavelengths by pair, and errors by position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.2 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), part in zip(rows, found, strict=True):
        label = f"{title} {part.layer_type}" if len(found) > 1 else title
        draw_wavelengths(left, part)
        left.set_title(f"Wavelengths, {label}")
        draw_errors(right, part.errors, part.context)
        right.set_title(f"Error against position, {label}")
        style(left, right)
    figure.savefig(path, dpi=110)


def draw(path: Path) -> None:
    """Write the demo's PNG file: wavelengths of every rope type, and errors of one model by position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_rope_types(left)
    source = shipped(_ERROR_MODEL)
    config = RopeConfig.from_hf(source)
    draw_errors(right, errors_by_position(config, source, "full_attention"), config.max_position_embeddings)
    right.set_title(f"Error against position, {_ERROR_MODEL}")
    style(left, right)
    figure.savefig(path, dpi=150)


def svg(make: Callable[[], Any]) -> str:
    """The figure that ``make`` returns as SVG text, the same in every run."""
    from matplotlib import rc_context

    with rc_context(_SVG):
        text = io.StringIO()
        make().savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def style(*panels: Any) -> None:
    """Give axes the grid, spines and title font of every plot."""
    for axes in panels:
        axes.grid(True, which="major", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontsize=12.5, fontweight="bold")


def draw_wavelengths(axes: Any, part: Ladder) -> None:
    """Draw a config's wavelengths by pair, those of ``rope_theta`` alone where they differ, and its context."""
    if part.unscaled and [part.unscaled] != list(part.wavelengths.values()):
        axes.plot(part.unscaled, color=GREY, linewidth=1, linestyle="--", label="rope_theta alone")
    still = f"; {part.still} pairs are not rotated" if part.still else ""
    for (title, waves), colour in zip(part.wavelengths.items(), (_OURS, _SECOND), strict=False):
        axes.plot(waves, color=colour, linewidth=2, label=f"{part.rope_type}, {title}{still}")
    for length, name in ((part.original, "original context"), (part.context, "context")):
        if length is not None:
            axes.axhline(length, color=GREY, linewidth=1, linestyle=":")
            axes.text(0, length * 1.08, f"{name} {length:,}", fontsize=8.5, color=GREY)
    axes.set(yscale="log", xlabel="pair", ylabel="wavelength in tokens")
    axes.legend(frameon=False, loc="lower right")


def _draw_rope_types(axes: Any) -> None:
    contexts = set()
    for model, layer_type, colour in _CURVES:
        case = next(layers for layers in shipped_layers([model]) if layers.layer_type == layer_type)
        waves = wavelengths(case.config.inv_freq(case.context).tolist())
        share = [2 * i / case.config.head_dim for i in range(len(waves))]
        axes.plot(share, waves, color=colour, linewidth=2, label=f"{case.config.rope_type}: {model}")
        if len(waves) < case.config.rotary_dim // 2:
            axes.plot(share[-1], waves[-1], "s", color=colour, markersize=8, markeredgecolor="white", zorder=3)
        crossing = _crossing(share, waves, case.context)
        if crossing is not None:
            axes.plot(crossing, case.context, "o", color=colour, markersize=8, markeredgecolor="white", zorder=3)
            axes.hlines(case.context, 0, crossing, color=colour, linewidth=1, linestyle=":", zorder=1)
            contexts.add(case.context)
    for context in contexts:
        axes.text(0.008, context * 1.08, f"{context:,}", fontsize=8.5, color=GREY)
    axes.set(
        yscale="log",
        xlim=(0, 1),
        xlabel="pair index / pairs in the head",
        ylabel="wavelength in tokens",
        title="Wavelengths at the end of the context",
    )
    axes.legend(frameon=False, loc="lower right", title=_LEGEND, alignment="left")


def _crossing(xs: list[float], waves: list[float], context: int) -> float | None:
    """Where a curve crosses ``context``, interpolated on a log scale; ``None`` if it does not."""
    for i in range(1, len(waves)):
        if waves[i - 1] <= context < waves[i]:
            part = math.log(context / waves[i - 1]) / math.log(waves[i] / waves[i - 1])
            return xs[i - 1] + part * (xs[i] - xs[i - 1])
    return None


def draw_errors(axes: Any, errors: Errors, context: int | None) -> None:
    """Draw the errors of ours and of transformers by position, their bounds, and the end of the context."""
    if errors.transformers:
        axes.plot(
            errors.positions, errors.transformers, color=_THEIRS, linewidth=2,
            label="transformers: fp32 table, fp32 rotation",
        )  # fmt: skip
    axes.plot(errors.positions, errors.ours, color=_OURS, linewidth=2, label="rope_kernels: exact phases")
    axes.axhline(2**-8, color=GREY, linewidth=1, linestyle="--", label="rounding to bf16, $2^{-8}$")
    axes.axhline(CONTRACT, color=_OURS, linewidth=1, linestyle="--", label=f"contract, {CONTRACT:.0e}")
    if context:
        axes.axvline(context, color=GREY, linewidth=1, linestyle=":", label="end of the context")
    axes.set(
        yscale="log",
        xlabel="position" if errors.note is None else f"position   (no curve of transformers: {errors.note:.60})",
        ylabel="max |y − exact| / max |x| of fp32 inputs",
    )
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, loc="upper left")
