"""The numbers behind the plots: wavelengths by pair, and errors by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..api.apply import apply_rope
from ..config import RopeConfig
from ..config.explain import states
from ..config.rope_types import ROPE_TYPES
from ..core.frequency import FrequencyParams
from . import exact
from .accuracy import relative_error
from .peers import PeerError, transformers_rotation

__all__ = ["Curves", "Errors", "Ladder", "curves", "errors_by_position", "ladder", "num_steps", "wavelengths"]

_LAST_POSITION_LOG2 = 24
_WINDOW = 64  # tokens rotated up to each position


@dataclass(frozen=True)
class Errors:
    """``max |y - exact| / max |x|`` of fp32 inputs over the tokens up to each of ``positions``.

    ``transformers`` is empty if transformers cannot rotate this config, and ``note`` says why.
    """

    positions: list[int]
    ours: list[float]
    transformers: list[float]
    note: str | None


@dataclass(frozen=True)
class Ladder:
    """The wavelengths of one config.

    Attributes:
        layer_type: transformers' name of the layers.
        rope_type: of the config.
        context: ``max_position_embeddings``, in tokens, or ``None``.
        original: ``original_max_position_embeddings``, or ``None``.
        wavelengths: tokens per turn of every pair with a frequency, by a text that says for which sequence lengths.
        still: the number of pairs among the rotated channels whose frequency is zero.
        unscaled: the wavelengths of ``rope_theta`` alone; empty for a config without it.
    """

    layer_type: str
    rope_type: str
    context: int | None
    original: int | None
    wavelengths: dict[str, list[float]]
    still: int
    unscaled: list[float]


@dataclass(frozen=True)
class Curves(Ladder):
    """The wavelengths of one config, and its errors by position."""

    errors: Errors


def num_steps() -> int:
    """The number of times that :func:`curves` calls ``done`` per layer type."""
    return len(_ends())


def curves(
    layers: Mapping[str, RopeConfig], source: Mapping[str, Any], done: Callable[[], None] = lambda: None
) -> list[Curves]:
    """The curves that :func:`rope_kernels.cli.plotting.draw_curves` draws.

    Args:
        layers: a config per layer type.
        source: the config.json of the configs, as a dict, for transformers.
        done: reports progress; called :func:`num_steps` times per layer type.
    """
    return [
        Curves(**vars(ladder(config, name)), errors=errors_by_position(config, source, name, done))
        for name, config in layers.items()
    ]


def ladder(config: RopeConfig, layer_type: str = "full_attention") -> Ladder:
    """The wavelengths of a config."""
    return Ladder(
        layer_type=layer_type,
        rope_type=config.rope_type,
        context=config.max_position_embeddings,
        original=config.original_max_position_embeddings,
        wavelengths={
            title: wavelengths(config.inv_freq(length).tolist()) for length, title in states(config.frequency_params)
        },
        still=int((config.inv_freq() == 0).sum()),
        unscaled=_unscaled(config),
    )


def wavelengths(inv_freq: list[float]) -> list[float]:
    """Tokens per turn of every pair with a frequency."""
    return [2 * math.pi / abs(f) for f in inv_freq if f]


def _unscaled(config: RopeConfig) -> list[float]:
    if not ROPE_TYPES[config.rope_type].takes("rope_theta"):
        return []
    params = config.frequency_params
    plain = FrequencyParams(config.rope_theta, params.freq_dim, params.num_frequencies, rotated=params.rotated)
    return wavelengths(plain.inv_freqs(config.rotation().index))


def _ends() -> list[int]:
    return sorted({round(2 ** (quarter / 4)) for quarter in range(4 * _LAST_POSITION_LOG2 + 1)})


def errors_by_position(
    config: RopeConfig, source: Mapping[str, Any], layer_type: str, done: Callable[[], None] = lambda: None
) -> Errors:
    """The errors of ours and of transformers at quarter powers of two up to position 2 ** 24."""
    peer, note = None, None
    try:
        peer = transformers_rotation(source, layer_type)
    except PeerError as error:
        note = str(error)
    ours: list[float] = []
    theirs: list[float] = []
    for end in _ends():
        positions = torch.arange(max(end - _WINDOW, 0) + 1, end + 1)[None]
        generator = torch.Generator().manual_seed(end)
        q = torch.randn((1, positions.shape[1], 4, config.head_dim), generator=generator)
        want = exact.rotate(q, positions, config)
        ours.append(relative_error(apply_rope(q, None, positions, config)[0], want, q))
        if peer is not None:
            rows = positions.expand(config.num_axes, *positions.shape) if config.num_axes > 1 else positions
            try:
                theirs.append(relative_error(peer(q, q, rows)[0], want, q))
            except Exception as error:  # the model's function has another signature
                peer, note, theirs = None, f"its call failed: {type(error).__name__}: {error}", []
        done()
    return Errors(_ends(), ours, theirs, note)
