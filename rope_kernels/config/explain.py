"""Explain a config in plain text: every value with its origin, then what the values mean in tokens."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from ..core.frequency import FrequencyParams
from ..core.rotation import Rotation
from .fields import RopeFields
from .rope_types import DEFAULTS, ROPE_TYPES

__all__ = ["effective_context", "explain", "states"]

_ALWAYS = ("rope_type", "head_dim", "max_position_embeddings", "pairing", "phase")
_NOT_SHOWN = ("extra", "strict", "provenance")
_PAIRS = {
    "half": "channel i pairs with channel i + {distance}",
    "interleaved": "channel 2i pairs with channel 2i + 1",
    "interleaved_to_half": "channel 2i pairs with channel 2i + 1, results are written to i and i + {distance}",
}


def explain(config: RopeFields, params: FrequencyParams, rotation: Rotation) -> str:
    """Describe a checked config and what was computed from it, in several lines."""
    rows = _value_rows(config, params)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]
    known = {f.name for f in fields(RopeFields)}
    lines += [f"note: {key} = {text}" for key, text in config.provenance.items() if key not in known]
    lines += ["", *_geometry(rotation, config.axis_map), *_effective_context(config, params)]
    for seq_len, title in states(params):
        lines += ["", *_state(config, params, rotation, seq_len, title)]
    return "\n".join(line.rstrip() for line in lines)


def _value_rows(config: RopeFields, params: FrequencyParams) -> list[tuple[str, str, str]]:
    kind, given, rows = ROPE_TYPES[config.rope_type], config.given(), []
    for field in fields(RopeFields):
        name, value = field.name, getattr(config, field.name)
        used = name in given or name in _ALWAYS or (kind.builtin and kind.takes(name))
        if name in _NOT_SHOWN or not used:
            continue
        origin = config.provenance.get(name, "given" if name in given else "default")
        if value is None and name == "factor" and params.factor != 1:
            value, origin = params.factor, "max_position_embeddings / original_max_position_embeddings"
        value = DEFAULTS.get(name) if value is None else value
        if value is not None:
            rows.append((name, _text(value), origin))
    return rows + [(key, _text(value), "given") for key, value in dict(config.extra).items()]


def _text(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 8:
        return f"{len(value)} values from {min(value):g} to {max(value):g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _geometry(rotation: Rotation, axis_map: str | None) -> list[str]:
    first, span = rotation.rotary_offset, 2 * rotation.distance * rotation.blocks
    lines = [
        f"channels {first} to {first + span - 1} of {rotation.head_dim} are paired, {rotation.num_pairs} of "
        f"{span // 2} pairs rotate; {_PAIRS[rotation.pairing].format(distance=rotation.distance)}"
    ]
    if rotation.blocks > 1:
        lines.append(f"each of {rotation.blocks} equal blocks of channels is paired on its own")
    if rotation.axis:
        counts = [rotation.axis.count(row) for row in range(rotation.num_axes)]
        lines.append(f"axis map {axis_map}: {rotation.num_axes} rows of positions rotate {counts} pairs")
    return lines


def effective_context(config: RopeFields, params: FrequencyParams) -> int | None:
    """The original context times the factor, in tokens; ``None`` if the config gives no length.

    Beyond it the stretched pairs reach angles that the original context did not have.
    ``max_position_embeddings`` may be more or less.
    """
    original = config.original_max_position_embeddings or params.dynamic_length
    factor = params.factor if params.factor != 1 else config.factor
    return int(original * factor) if original and factor else config.max_position_embeddings


def _effective_context(config: RopeFields, params: FrequencyParams) -> list[str]:
    length, promised = effective_context(config, params), config.max_position_embeddings
    if length is None:
        return []
    original = config.original_max_position_embeddings or params.dynamic_length
    origin = f", {length // original} times the original {original}" if original and length % original == 0 else ""
    differs = f"; max_position_embeddings says {promised}" if promised not in (None, length) else ""
    return [f"effective context: {length} tokens{origin}{differs}"]


def states(params: FrequencyParams) -> list[tuple[int | None, str]]:
    """Sequence lengths with different frequencies, each with a title; ``None`` is the initial state."""
    if params.switch_length:
        length = params.switch_length
        return [
            (length, f"sequences of up to {length} tokens"),
            (length + 1, f"sequences of more than {length} tokens"),
        ]
    if params.dynamic_factor:
        length = params.dynamic_length
        grown = f"sequences of {2 * length} tokens (theta grows with the length)"
        return [(None, f"sequences of up to {length} tokens"), (2 * length, grown)]
    return [(None, "all lengths")]


def _state(
    config: RopeFields, params: FrequencyParams, rotation: Rotation, seq_len: int | None, title: str
) -> list[str]:
    rotated = [abs(f) for f in params.inv_freqs(rotation.index, seq_len) if f]
    scaling = params.scaling(seq_len)
    lines = [f"{title}:"]
    if rotated:
        short, long = 2 * math.pi / max(rotated), 2 * math.pi / min(rotated)
        lines.append(f"  wavelengths from {short:.6g} to {long:.6g} tokens")
    longest = config.max_position_embeddings
    if longest is not None:
        slow = sum(f * longest < 2 * math.pi for f in rotated)
        lines.append(f"  {slow} of {len(rotated)} pairs make less than one turn over {longest} tokens")
    lines.append(f"  cos and sin are multiplied by {scaling:.6g}, scores therefore by {scaling**2:.6g}")
    return lines
