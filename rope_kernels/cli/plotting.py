"""Pictures of wavelengths, and of how errors grow with the position: the demo's, and that of one config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import RopeConfig
from ..measuring.accuracy import CONTRACT
from ..measuring.catalog import shipped
from ..measuring.curves import Curves, Errors, errors_by_position, wavelengths
from ..measuring.models import cases

__all__ = ["draw", "draw_curves"]

# Model, layer type and colour of the curve that shows a rope type.
_CURVES = (
    ("llama-2-7b", "full_attention", "#4c566a"),
    ("deepseek-coder-6.7b", "full_attention", "#b07d2b"),
    ("internlm2-chat-7b", "full_attention", "#2a9d8f"),
    ("qwen2.5-7b-yarn", "full_attention", "#1d6fb8"),
    ("llama-3.1-8b", "full_attention", "#7b4fb5"),
    ("phi-3.5-mini", "full_attention", "#c8442f"),
    ("gemma-4-text", "full_attention", "#d1669b"),
)
_OURS, _THEIRS, _LIMIT = "#1d6fb8", "#c8442f", "#4c566a"
_LEGEND = "dot: one turn takes the whole context\nsquare: the pairs after it do not turn"
_ERROR_MODEL = "llama-3.1-8b"


def draw_curves(found: Sequence[Curves], path: Path, title: str) -> None:
    """Write two panels per layer type to a PNG file: wavelengths by pair, and errors by position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.2 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), part in zip(rows, found, strict=True):
        label = f"{title} {part.layer_type}" if len(found) > 1 else title
        _draw_pairs(left, part, label)
        _draw_errors(right, part.errors, part.context, label)
        _style(left, right)
    figure.savefig(path, dpi=110)


def draw(path: Path) -> None:
    """Write the demo's two panels to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_wavelengths(left)
    source = shipped(_ERROR_MODEL)
    config = RopeConfig.from_hf(source)
    _draw_errors(
        right, errors_by_position(config, source, "full_attention"), config.max_position_embeddings, _ERROR_MODEL
    )
    _style(left, right)
    figure.savefig(path, dpi=150)


def _style(*panels: Any) -> None:
    for axes in panels:
        axes.grid(True, which="major", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontsize=12.5, fontweight="bold")


def _draw_pairs(axes: Any, part: Curves, label: str) -> None:
    if part.unscaled:
        axes.plot(part.unscaled, color=_LIMIT, linewidth=1, linestyle="--", label="rope_theta alone")
    still = f"; {part.still} pairs do not turn" if part.still else ""
    for (title, waves), colour in zip(part.wavelengths.items(), (_OURS, _THEIRS), strict=False):
        axes.plot(waves, color=colour, linewidth=2, label=f"{part.rope_type}, {title}{still}")
    for length, name in ((part.original, "original context"), (part.context, "context")):
        if length is not None:
            axes.axhline(length, color=_LIMIT, linewidth=1, linestyle=":")
            axes.text(0, length * 1.08, f"{name} {length:,}", fontsize=8.5, color=_LIMIT)
    axes.set(yscale="log", xlabel="pair", ylabel="wavelength in tokens", title=f"Wavelengths, {label}")
    axes.legend(frameon=False, loc="lower right")


def _draw_wavelengths(axes: Any) -> None:
    contexts = set()
    for model, layer_type, colour in _CURVES:
        case = next(case for case in cases([model]) if case.layer_type == layer_type)
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
        axes.text(0.008, context * 1.08, f"{context:,}", fontsize=8.5, color=_LIMIT)
    axes.set(
        yscale="log",
        xlim=(0, 1),
        xlabel="pair index / pairs in the head",
        ylabel="wavelength in tokens",
        title="Wavelengths at the end of the context",
    )
    axes.legend(frameon=False, loc="lower right", title=_LEGEND, alignment="left")


def _crossing(xs: list[float], waves: list[float], context: int) -> float | None:
    """Where a curve reaches ``context``, straight between points on a log scale; ``None`` where it does not."""
    for i in range(1, len(waves)):
        if waves[i - 1] <= context < waves[i]:
            part = math.log(context / waves[i - 1]) / math.log(waves[i] / waves[i - 1])
            return xs[i - 1] + part * (xs[i] - xs[i - 1])
    return None


def _draw_errors(axes: Any, errors: Errors, context: int | None, label: str) -> None:
    if errors.transformers:
        axes.plot(
            errors.positions, errors.transformers, color=_THEIRS, linewidth=2,
            label="transformers: fp32 table, fp32 rotation",
        )  # fmt: skip
    axes.plot(errors.positions, errors.ours, color=_OURS, linewidth=2, label="rope_kernels: phases in turns")
    axes.axhline(2**-8, color=_LIMIT, linewidth=1, linestyle="--", label="rounding to bf16, $2^{-8}$")
    axes.axhline(CONTRACT, color=_OURS, linewidth=1, linestyle="--", label=f"contract, {CONTRACT:.0e}")
    if context:
        axes.axvline(context, color=_LIMIT, linewidth=1, linestyle=":", label="end of the context")
    axes.set(
        yscale="log",
        xlabel="position" if errors.note is None else f"position   (no curve of transformers: {errors.note:.60})",
        ylabel="max |y − exact| / max |x| of fp32 inputs",
        title=f"Error against position, {label}",
    )
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, loc="upper left")
