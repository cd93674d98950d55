"""The pictures of these pages. A hook of mkdocs; ``python docs/pictures.py FOLDER`` writes them to a folder."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rope_kernels import RopeConfig
from rope_kernels.cli import plotting
from rope_kernels.cli.plotting import GREY, LIBRARIES, draw_errors, draw_wavelengths, style
from rope_kernels.measuring import catalog
from rope_kernels.measuring.curves import errors_by_position, ladder, wavelengths

OURS, THEIRS, PLAIN, GRID = LIBRARIES["rope_kernels"], LIBRARIES["transformers"], GREY, "#e3e6ea"
AXES = ("#1d6fb8", "#2a9d8f", "#c8442f")

SHIPPED = {
    "linear": "deepseek-coder-6.7b",
    "yarn": "qwen2.5-7b-yarn",
    "llama3": "llama-3.1-8b",
    "longrope": "phi-3.5-mini",
}
OWN = {
    "default": RopeConfig(head_dim=128, max_position_embeddings=4096),
    "dynamic": RopeConfig(head_dim=128, rope_type="dynamic", factor=2.0, max_position_embeddings=4096),
    "ntk_alpha": RopeConfig(head_dim=128, rope_type="ntk_alpha", alpha=1000.0, max_position_embeddings=262144),
    "proportional": RopeConfig(
        head_dim=128, rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25,
        max_position_embeddings=131072,
    ),
    "inv_freq": RopeConfig.from_inv_freq([2 * math.pi / (8 + 4 * i) for i in range(64)]),
}  # fmt: skip
MAPS = {
    "mrope": [
        RopeConfig(head_dim=64, rope_type="mrope", mrope_section=[8, 12, 12]),
        RopeConfig(head_dim=64, rope_type="mrope", mrope_section=[12, 10, 10], axis_map="interleaved"),
        RopeConfig(head_dim=64, rope_type="mrope", mrope_section=[11, 11, 10], axis_map="ernie"),
    ],
    "axial": [
        RopeConfig(head_dim=64, rope_type="axial", axis_map=name)
        for name in ("qwen_vision", "pixtral", "kimi", "gemma4_vision")
    ],
}


def on_files(files: Any, config: Any) -> Any:
    """The mkdocs hook: add the pictures to the files of the site."""
    from mkdocs.structure.files import File

    for name in PICTURES:
        files.append(File.generated(config, f"pictures/{name}.svg", content=svg(name)))
    return files


def svg(name: str) -> str:
    """The text of a picture."""
    return plotting.svg(PICTURES[name])


def _panel(width: float = 7.2, height: float = 3.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    style(axes)
    return figure, axes


def _rope_type(name: str) -> Figure:
    """Wavelengths of a rope type, beside those of rope_theta alone over all pairs."""
    config = OWN[name] if name in OWN else RopeConfig.from_hf(catalog.shipped(SHIPPED[name]))
    found = ladder(config)
    if name != "inv_freq":
        plain = RopeConfig(head_dim=config.head_dim, rope_theta=config.rope_theta)
        found = replace(found, unscaled=wavelengths(plain.inv_freq().tolist()))
    figure, axes = _panel()
    draw_wavelengths(axes, found)
    axes.set_title(SHIPPED.get(name, ""))
    return figure


def _axis_maps(name: str) -> Figure:
    """The position row and the frequency of every pair, by axis map."""
    configs = MAPS[name]
    figure = Figure(figsize=(7.2, 0.62 * len(configs) + 0.5), layout="constrained")
    axes = figure.subplots()
    for row, config in enumerate(configs):
        rotation = config.rotation()
        for i, (axis, index) in enumerate(zip(rotation.axis, rotation.index, strict=True)):
            axes.barh(row, 0.92, 0.7, left=i, color=AXES[axis])
            axes.text(i + 0.46, row, str(index), ha="center", va="center", fontsize=6.5, color="white")
    axes.set_yticks(range(len(configs)), [config.axis_map for config in configs])
    axes.invert_yaxis()
    axes.set(xlim=(-0.2, 32.2), xlabel="pair; colour: position row 0, 1, 2; number: index in the ladder")
    for row, colour in enumerate(AXES[: configs[0].num_axes]):
        axes.plot([], [], "s", color=colour, label=f"row {row}")
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


def _pairings() -> Figure:
    """The channels from which the two members of a pair are read and to which they are written."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    for axes, (name, read, write) in zip(
        figure.subplots(1, 3),
        (("half", _half, _half), ("interleaved", _near, _near), ("interleaved_to_half", _near, _half)),
        strict=True,
    ):
        for pair in range(4):
            colour = ("#1d6fb8", "#2a9d8f", "#c8442f", "#7b4fb5")[pair]
            for member in (0, 1):
                x, y = read(pair)[member], write(pair)[member]
                axes.plot([x, y], [1, 0], color=colour, linewidth=1.2)
                axes.plot([x], [1], "s" if member else "o", color=colour, markersize=11)
                axes.plot([y], [0], "s" if member else "o", color=colour, markersize=11)
        axes.set_title(name, fontsize=10, family="monospace")
        axes.set(xlim=(-0.6, 7.6), ylim=(-0.4, 1.4), xticks=range(8), xlabel="channel")
        axes.set_yticks((0, 1), ("written", "read") if name == "half" else ("", ""))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    return figure


def _half(pair: int) -> tuple[int, int]:
    return pair, pair + 4


def _near(pair: int) -> tuple[int, int]:
    return 2 * pair, 2 * pair + 1


def _phase() -> Figure:
    """The fixed-point phase: words as boxes, then the angle on a circle."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 100), ylim=(0, 52))
    axes.set_aspect("equal")

    def word(left: float, bottom: float, width: float, text: str, colour: str, dashed: bool = False) -> None:
        style = dict(facecolor="white", linestyle="--") if dashed else dict(facecolor=colour, alpha=0.9)
        axes.add_patch(_box(left, bottom, width, edgecolor=colour, **style))
        axes.text(
            left + width / 2,
            bottom + 3,
            text,
            ha="center",
            va="center",
            fontsize=8.5,
            color=colour if dashed else "white",
        )

    axes.text(0, 49, "frequency, in turns per position, times 2^64; once per config", fontsize=9)
    word(22, 41, 44, "omega: 64 bits of a fraction of a turn", PLAIN)
    axes.text(0, 36.5, "times the position, an integer; negative ones in two's complement", fontsize=9)
    word(0, 28.5, 21, "whole turns", THEIRS, dashed=True)
    word(22, 28.5, 22, "phase: upper 32 bits", OURS)
    word(44, 28.5, 22, "lower 32 bits", PLAIN)
    axes.text(10.5, 26, "overflow: dropped, exactly", fontsize=8, ha="center", color=THEIRS)
    axes.text(0, 20, "reduced in integers, and only now a floating-point number", fontsize=9)
    word(22, 12, 11, "half turn", OURS)
    word(33, 12, 33, "the rest, as fp32: polynomials", OURS)
    axes.text(27, 9.5, "sign", fontsize=8, ha="center", color=OURS)
    axes.text(49, 9.5, "cos and sin, to 6e-8", fontsize=8, ha="center", color=OURS)
    centre, radius, angle = (84, 27), 11, 2 * math.pi * 0.14
    axes.plot(*_arc(centre, radius, 0, 2 * math.pi), color=GRID, linewidth=2)
    axes.plot(*_arc(centre, radius, 0, angle), color=OURS, linewidth=3)
    end = (centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle))
    axes.plot((centre[0], end[0]), (centre[1], end[1]), color=OURS, linewidth=1.5)
    axes.plot((centre[0], centre[0] + radius), (centre[1], centre[1]), color=PLAIN, linewidth=1)
    axes.text(84, 42, "phase / 2^32 of a turn", ha="center", fontsize=8.5, color=OURS)
    axes.text(84, 11, "one step is 1.5e-9 rad", ha="center", fontsize=8.5, color=PLAIN)
    return figure


def _box(left: float, bottom: float, width: float, **style: Any) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((left, bottom), width, 6, boxstyle="round,pad=0,rounding_size=0.8", linewidth=1, **style)


def _arc(centre: tuple[float, float], radius: float, start: float, end: float) -> tuple[list[float], list[float]]:
    steps = [start + (end - start) * i / 60 for i in range(61)]
    return [centre[0] + radius * math.cos(a) for a in steps], [centre[1] + radius * math.sin(a) for a in steps]


def _errors() -> Figure:
    """Errors by position, ours and transformers', of llama-3.1-8b."""
    source = catalog.shipped("llama-3.1-8b")
    config = RopeConfig.from_hf(source)
    figure, axes = _panel(height=3.8)
    draw_errors(axes, errors_by_position(config, source, "full_attention"), config.max_position_embeddings)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    **{f"type-{name}": lambda name=name: _rope_type(name) for name in (*OWN, *SHIPPED)},
    **{f"type-{name}": lambda name=name: _axis_maps(name) for name in MAPS},
    "pairings": _pairings,
    "phase": _phase,
    "errors": _errors,
}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        (folder / f"{picture}.svg").write_text(svg(picture), encoding="utf-8")
