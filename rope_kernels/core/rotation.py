"""Which channels form a pair, which axis of positions and which frequency rotate it, and how the angle is formed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RopeConfigError

__all__ = [
    "AXIAL_MAPS",
    "AXIS_MAPS",
    "MAX_PAIRS",
    "MROPE_MAPS",
    "PAIRINGS",
    "PHASES",
    "TABLE_DTYPES",
    "AxisMap",
    "Rotation",
    "axis_map",
]

PAIRINGS = ("half", "interleaved", "interleaved_to_half")
PHASES = ("exact", "float32")
TABLE_DTYPES = ("bfloat16", "float16")
MROPE_MAPS = ("contiguous", "interleaved", "ernie")
AXIAL_MAPS = ("qwen_vision", "pixtral", "kimi", "gemma4_vision")
AXIS_MAPS = MROPE_MAPS + AXIAL_MAPS
MAX_PAIRS = 4096
"""Pairs of a head that every backend rotates: heads of up to 8192 rotated channels."""


@dataclass(frozen=True)
class AxisMap:
    """Per pair ``i``: ``axis[i]``, its axis of positions, and ``freq_index[i]``, its frequency (empty: ``i``)."""

    axis: tuple[int, ...]
    freq_index: tuple[int, ...] = ()
    blocks: int = 1


@dataclass(frozen=True)
class Rotation:
    """The geometry of one head and the arithmetic of its angles.

    Attributes:
        head_dim: channels of a head, the last axis of q.
        rotary_offset: channels before the first rotated one.
        num_pairs: pairs that are rotated; all other channels pass through unchanged.
        distance: channels between the two members of a ``half`` pair, as read and as written.
        pairing: one of :data:`PAIRINGS`; ``interleaved_to_half`` reads neighbours and writes halves.
        blocks: equal parts of the rotated channels, each with pairs of its own (2: Gemma4 vision).
        axis: axis of positions per pair; empty if there is one axis.
        freq_index: frequency per pair; empty for the identity.
        phase: ``exact`` or ``float32`` (transformers' own product).
        table_dtype: dtype that cos and sin are rounded to first, or ``""``.
    """

    head_dim: int
    num_pairs: int
    distance: int
    rotary_offset: int = 0
    pairing: str = "half"
    blocks: int = 1
    axis: tuple[int, ...] = ()
    freq_index: tuple[int, ...] = ()
    phase: str = "exact"
    table_dtype: str = ""

    @property
    def num_axes(self) -> int:
        """Axes of positions that the rotation reads."""
        return max(self.axis) + 1 if self.axis else 1

    @property
    def index(self) -> tuple[int, ...]:
        """Index of every pair's frequency in the ladder."""
        return self.freq_index or tuple(range(self.num_pairs))


def axis_map(name: str, num_pairs: int, mrope_section: Sequence[int] = ()) -> AxisMap:
    """The axis and frequency of each of ``num_pairs`` pairs in a named scheme.

    ``contiguous`` and ``interleaved`` take any number of sections. Sources are the modeling files of transformers 5.23:
    ``contiguous`` Qwen2-VL, ``interleaved`` Qwen3-VL, ``ernie`` Ernie 4.5 VL (height and width alternate, then time),
    ``qwen_vision`` Qwen2-VL's vision tower (the index restarts per axis), ``pixtral`` (the axes take the even and the
    odd frequencies of one ladder), ``kimi`` Kimi K2.5 (axes alternate, width first), ``gemma4_vision`` (each half of
    the head has its own axis and pairs).

    Raises:
        RopeConfigError: unknown name, or sections that do not fit ``num_pairs``.
    """
    if name in MROPE_MAPS:
        return AxisMap(_MROPE[name](num_pairs, _sections(num_pairs, mrope_section)))
    if name not in AXIAL_MAPS:
        raise RopeConfigError("axis_map", f"got {name!r}, allowed are {', '.join(AXIS_MAPS)}")
    if num_pairs % 2:
        raise RopeConfigError(
            "head_dim", f"{num_pairs} pairs cannot be shared by two axes; head_dim must be a multiple of 4"
        )
    half, pairs = num_pairs // 2, range(num_pairs)
    if name == "kimi":
        return AxisMap(tuple(1 - i % 2 for i in pairs), tuple(i // 2 for i in pairs))
    axis = tuple(i // half for i in pairs)
    if name == "pixtral":
        return AxisMap(axis, tuple(2 * (i % half) + i // half for i in pairs))
    return AxisMap(axis, tuple(i % half for i in pairs), blocks=2 if name == "gemma4_vision" else 1)


def _sections(num_pairs: int, mrope_section: Sequence[int]) -> Sequence[int]:
    if sum(mrope_section) != num_pairs:
        raise RopeConfigError(
            "mrope_section",
            f"got {list(mrope_section)}, sum {sum(mrope_section)}; must sum to rotary_dim / 2 = {num_pairs}",
        )
    return mrope_section


def _contiguous(num_pairs: int, sections: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis, size in enumerate(sections) for _ in range(size))


def _interleaved(num_pairs: int, sections: Sequence[int]) -> tuple[int, ...]:
    axes, count = [0] * num_pairs, len(sections)
    for axis in range(1, count):
        for i in range(axis, min(count * sections[axis], num_pairs), count):
            axes[i] = axis
    return tuple(axes)


def _ernie(num_pairs: int, sections: Sequence[int]) -> tuple[int, ...]:
    height, width, time = _three(sections)
    if height != width:
        raise RopeConfigError(
            "mrope_section", f"got {list(sections)}; ernie needs height and width sections of one size"
        )
    return tuple(1 + i % 2 for i in range(height + width)) + (0,) * time


def _three(sections: Sequence[int]) -> Sequence[int]:
    if len(sections) != 3:
        raise RopeConfigError("mrope_section", f"got {list(sections)}; three sections are needed")
    return sections


_MROPE = {"contiguous": _contiguous, "interleaved": _interleaved, "ernie": _ernie}
