"""The demo's picture: what the rope types do to wavelengths, and how errors grow with the position."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from . import exact
from .catalog import shipped
from .config import RopeConfig
from .demo import CONTRACT, Case, cases, relative_error
from .functional import apply_rope
from .peers import PeerError, transformers_rotation

__all__ = ["draw"]

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
_WINDOW = 64
_ERROR_MODEL = "llama-3.1-8b"
_LAST_POSITION_LOG2 = 24


def draw(path: Path) -> None:
    """Write the two panels to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_wavelengths(left)
    _draw_errors(right)
    for axes in (left, right):
        axes.grid(True, which="major", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontsize=12.5, fontweight="bold")
    figure.savefig(path, dpi=150)


def _draw_wavelengths(axes: Any) -> None:
    contexts = set()
    for model, layer_type, colour in _CURVES:
        case = next(case for case in cases([model]) if case.layer_type == layer_type)
        waves = _wavelengths(case)
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


def _wavelengths(case: Case) -> list[float]:
    """Tokens per turn of every pair that turns."""
    return [2 * math.pi / f for f in case.config.inv_freq(case.context).tolist() if f]


def _draw_errors(axes: Any) -> None:
    config = RopeConfig.from_hf(shipped(_ERROR_MODEL))
    ends, ours, theirs = _errors(config)
    if theirs:
        axes.plot(ends, theirs, color=_THEIRS, linewidth=2, label="transformers: fp32 table, fp32 rotation")
    axes.plot(ends, ours, color=_OURS, linewidth=2, label="rope_kernels: phases in turns")
    axes.axhline(2**-8, color=_LIMIT, linewidth=1, linestyle="--", label="rounding to bf16, $2^{-8}$")
    axes.axhline(CONTRACT, color=_OURS, linewidth=1, linestyle="--", label=f"contract, {CONTRACT:.0e}")
    if config.max_position_embeddings:
        axes.axvline(
            config.max_position_embeddings, color=_LIMIT, linewidth=1, linestyle=":", label="end of the context"
        )
    axes.set(
        yscale="log",
        xlabel="position",
        ylabel="max |y − exact| / max |x| of fp32 inputs",
        title=f"Error against position, {_ERROR_MODEL}",
    )
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, loc="upper left")


def _errors(config: RopeConfig) -> tuple[list[int], list[float], list[float]]:
    """Positions, our errors over the tokens up to each of them, and transformers' (empty without transformers)."""
    try:
        peer = transformers_rotation(shipped(_ERROR_MODEL), "full_attention")
    except PeerError:
        peer = None
    ends = sorted({round(2 ** (quarter / 4)) for quarter in range(4 * _LAST_POSITION_LOG2 + 1)})
    ours, theirs = [], []
    for end in ends:
        positions = torch.arange(max(end - _WINDOW, 0) + 1, end + 1)[None]
        generator = torch.Generator().manual_seed(end)
        q = torch.randn((1, positions.shape[1], 4, config.head_dim), generator=generator)
        want = exact.rotate(q, positions, config)
        ours.append(relative_error(apply_rope(q, None, positions, config)[0], want, q))
        if peer is not None:
            theirs.append(relative_error(peer(q, q, positions)[0], want, q))
    return ends, ours, theirs
