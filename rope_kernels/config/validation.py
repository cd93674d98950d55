"""Checks of a config's values. Every message begins with the field, then says what came and what is allowed."""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..core.frequency import FrequencyParams
from ..core.rotation import AXIS_MAPS, MROPE_MAPS, PAIRINGS, PHASES, TABLE_DTYPES
from ..errors import RopeConfigError, RopeConfigWarning
from .fields import RopeFields
from .rope_types import DEFAULTS, ROPE_TYPES, RopeType

__all__ = [
    "as_tuple",
    "check_choice",
    "check_params",
    "nearest",
    "normalise",
    "raise_or_warn",
    "resolve_axis_map",
    "validate",
]

_POSITIVE = (
    "head_dim",
    "rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "alpha",
    "short_mscale",
    "long_mscale",
)
# Fields that every rope type allows.
_SHARED = {
    "head_dim",
    "rope_type",
    "rotary_offset",
    "max_position_embeddings",
    "pairing",
    "phase",
    "table_dtype",
    "extra",
}
_NOT_NEGATIVE = ("rotary_offset", "mscale", "mscale_all_dim")
_POSITIVE_LISTS = ("short_factor", "long_factor", "mrope_section")
_CHOICES = {"pairing": PAIRINGS, "phase": PHASES, "table_dtype": TABLE_DTYPES, "axis_map": AXIS_MAPS}


def raise_or_warn(field: str, problem: str, strict: bool) -> None:
    """Raise a :class:`RopeConfigError`, or without ``strict`` warn about the same problem."""
    if strict:
        raise RopeConfigError(field, f"{problem} (strict=False only warns)")
    # All warnings come from this line, so that Python's filter shows each text once, wherever configs are made.
    warnings.warn(f"{field}: {problem}", RopeConfigWarning, stacklevel=1)


def nearest(word: str, words: Sequence[str]) -> str:
    """``"; did you mean ...?"`` for a word that is close to an allowed one, otherwise ``""``."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def normalise(config: RopeFields) -> dict[str, Any]:
    """The fields in their stored form: floats, ints, tuples.

    A bool or a string is no number. A whole float such as 4096.0 for an integer is an error with ``strict`` only.

    Raises:
        RopeConfigError: a value of the wrong type, or NaN or infinite.
    """
    values: dict[str, Any] = {}
    for field in fields(RopeFields):
        value = getattr(config, field.name)
        if field.name == "extra":
            values["extra"] = _extra(value)
        elif field.name == "provenance":
            values["provenance"] = dict(value)
        elif value is None and "None" in str(field.type):
            values[field.name] = None
        else:
            values[field.name] = _value(field.name, str(field.type), value, config.strict is not False)
    return values


def _value(name: str, kind: str, value: Any, strict: bool) -> Any:
    if kind.startswith("Sequence"):
        inner = "int" if "int" in kind else "float"
        return tuple(_number(f"{name}[{i}]", inner, x, strict) for i, x in enumerate(as_tuple(name, value)))
    if kind.startswith(("int", "float")):
        return _number(name, kind, value, strict)
    wanted = bool if kind.startswith("bool") else str
    if not isinstance(value, wanted):
        raise RopeConfigError(name, f"got {value!r} ({type(value).__name__}), must be a {wanted.__name__}")
    return value


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """The entries of a list or a tensor.

    Raises:
        RopeConfigError: ``value`` is no list; the message begins with ``name``.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise RopeConfigError(name, f"got {value!r} ({type(value).__name__}), must be a list of numbers")
    return tuple(value)


def _number(name: str, kind: str, value: Any, strict: bool) -> int | float:
    whole = kind.startswith("int")
    number: float = math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        wanted = "an integer" if whole else "a number"
        raise RopeConfigError(name, f"got {value!r} ({type(value).__name__}), must be {wanted}")
    with contextlib.suppress(OverflowError):
        number = float(value)
    if not math.isfinite(number):
        raise RopeConfigError(name, f"got {value!r}, must be finite")
    if not whole:
        return number
    if not isinstance(value, numbers.Integral):
        if not number.is_integer():
            raise RopeConfigError(name, f"got {value!r} (float), must be an integer")
        raise_or_warn(name, f"got {value!r} (float), must be an integer", strict)
    return int(number)


def _extra(extra: Any) -> tuple[tuple[str, Any], ...]:
    try:
        return _frozen_pairs(extra)
    except (TypeError, ValueError):
        raise RopeConfigError("extra", f"got {extra!r}, must be a dict") from None


def _frozen_pairs(extra: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((str(key), _frozen(value)) for key, value in dict(extra).items()))


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _frozen_pairs(value)
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def resolve_axis_map(config: RopeFields) -> str | None:
    """The axis map, or the type's default one; ``None`` for a config with one row of positions.

    Raises:
        RopeConfigError: an unknown type or map, a map that the type does not take, missing or unused sections.
    """
    kind = _kind(config)
    name: str | None = config.axis_map
    sections = config.mrope_section is not None
    if name is None:
        if not sections and kind.takes("mrope_section"):
            return None
        name = kind.axis_maps[0]
    if name not in kind.axis_maps:
        raise RopeConfigError(
            "axis_map", f"got {name!r}, allowed with {config.rope_type} are {', '.join(kind.axis_maps)}"
        )
    if sections and name not in MROPE_MAPS:
        raise RopeConfigError(
            "mrope_section", f"got {list(config.mrope_section or ())}, axis_map {name!r} has no sections"
        )
    if sections:
        _check_number_of_sections(config, name)
    if not sections and name in MROPE_MAPS:
        raise RopeConfigError("mrope_section", f"missing; axis_map {name!r} needs it")
    return name


def _check_number_of_sections(config: RopeFields, name: str) -> None:
    """Models have three sections at most; a table of frequencies may be of ladders for any number of axes."""
    found = list(config.mrope_section or ())
    if config.rope_type == "inv_freq":
        return
    more = "; only RopeConfig.from_inv_freq takes more"
    if name == "contiguous" and len(found) > 3:
        raise RopeConfigError("mrope_section", f"got {found}, must have at most 3 sections{more}")
    if name == "interleaved" and len(found) != 3:
        raise RopeConfigError(
            "mrope_section", f"got {found}; three sections are needed{more.replace('more', 'others')}"
        )


def _kind(config: RopeFields) -> RopeType:
    if config.rope_type not in ROPE_TYPES:
        raise RopeConfigError(
            "rope_type",
            f"got {config.rope_type!r}, allowed are {', '.join(sorted(ROPE_TYPES))}"
            + nearest(config.rope_type, list(ROPE_TYPES)),
        )
    return ROPE_TYPES[config.rope_type]


def validate(config: RopeFields) -> None:
    """Check the normalised values, each and against the others.

    Raises:
        RopeConfigError: a value that cannot be computed or has no meaning; with ``strict`` also one that transformers
            only logs about.
    """
    _check_keys(config, _kind(config))
    _check_ranges(config)
    _check_pairs_of_values(config)


def _check_keys(config: RopeFields, kind: RopeType) -> None:
    given, extra = config.given(), dict(config.extra)
    for key in sorted(kind.required - given.keys() - extra.keys()):
        raise RopeConfigError(key, f"missing; rope_type {config.rope_type!r} needs it")
    for key, value in (given | extra).items():
        if key not in _SHARED and not kind.takes(key):
            allowed = ", ".join(sorted(kind.required | (kind.optional or frozenset())))
            raise_or_warn(
                key, f"got {value!r}, rope_type {config.rope_type!r} does not use it; it takes {allowed}", config.strict
            )


def check_choice(field: str, value: str) -> None:
    """Raise unless ``value`` is an allowed word of ``pairing``, ``phase``, ``table_dtype`` or ``axis_map``."""
    choices = _CHOICES[field]
    if value not in choices:
        raise RopeConfigError(field, f"got {value!r}, allowed are {', '.join(choices)}{nearest(value, choices)}")


def _check_ranges(config: RopeFields) -> None:
    for name in _CHOICES:
        if getattr(config, name) is not None:
            check_choice(name, getattr(config, name))
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise RopeConfigError(name, f"got {value!r}, must be over 0")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise RopeConfigError(name, f"got {value!r}, must be 0 or more")
    for name in _POSITIVE_LISTS:
        for i, value in enumerate(getattr(config, name) or ()):
            if value <= 0:
                raise RopeConfigError(f"{name}[{i}]", f"got {value!r}, must be over 0")
    if config.partial_rotary_factor > 1:
        raise RopeConfigError("partial_rotary_factor", f"got {config.partial_rotary_factor!r}, must be at most 1")
    if config.ladder_dim == config.head_dim and config.head_dim % 2:
        raise RopeConfigError("head_dim", f"got {config.head_dim}, must be even when all of it rotates")


def _check_pairs_of_values(config: RopeFields) -> None:
    strict, factor, attention = config.strict, config.factor, config.attention_factor
    if factor is not None and factor < 1:
        raise_or_warn("factor", f"got {factor!r}, must be at least 1", strict)
    if attention is not None and attention <= 0:
        raise_or_warn("attention_factor", f"got {attention!r}, must be over 0", strict)
    if config.rope_theta <= 1:
        raise_or_warn("rope_theta", f"got {config.rope_theta!r}, must be over 1 for frequencies to fall", strict)
    fast, slow = config.beta_fast or DEFAULTS["beta_fast"], config.beta_slow or DEFAULTS["beta_slow"]
    if fast < slow:
        raise_or_warn("beta_fast", f"got {fast!r}, must be at least beta_slow, {slow!r}", strict)
    low, high = config.low_freq_factor, config.high_freq_factor
    if low is not None and high is not None and low > high:
        raise RopeConfigError("high_freq_factor", f"got {high!r}, must be at least low_freq_factor, {low!r}")
    _check_lengths(config)


def _check_lengths(config: RopeFields) -> None:
    original, longest, factor = (
        config.original_max_position_embeddings,
        config.max_position_embeddings,
        config.factor,
    )
    if original is None or longest is None:
        return
    if original >= longest:
        raise_or_warn(
            "original_max_position_embeddings",
            f"got {original}, usually less than max_position_embeddings, {longest}",
            strict=False,
        )
    implied = longest / original
    if config.rope_type == "yarn" and factor is not None and implied not in (1, factor):
        raise_or_warn(
            "factor",
            f"got {factor!r}, used as it is; max_position_embeddings / original_max_position_embeddings is {implied:g}",
            strict=False,
        )


def check_params(config: RopeFields, params: object) -> FrequencyParams:
    """Return ``params`` unchanged after checking that all their numbers are finite.

    Raises:
        RopeConfigError: a type's function returned something else, or numbers that are not finite.
    """
    if not isinstance(params, FrequencyParams):
        raise RopeConfigError(
            "rope_type", f"the function of {config.rope_type!r} returned {params!r}, must be a FrequencyParams"
        )
    for row, field in zip(params.multipliers, ("short_factor", "long_factor"), strict=False):
        if len(row) != params.num_frequencies:
            raise RopeConfigError(
                field, f"got {len(row)} entries, must have one per frequency, {params.num_frequencies}"
            )
    index = range(params.num_frequencies)
    states = [params.inv_freqs(index, seq_len) for seq_len in (None, params.switch_length + 1)]
    if not params.all_finite() or not all(math.isfinite(f) for state in states for f in state):
        raise RopeConfigError("rope_type", f"{config.rope_type!r} gives numbers that are not finite: {params}")
    return params
