"""The operator's text: one string with the frequencies, the geometry of a head, and the layout and flags of a call.

``torch.compile`` and ``torch.export`` treat a string as a constant; it holds doubles exactly, and ``.to(dtype)`` cannot
cast it. The operator's schema stays the same when a rope type is added, and one string argument is a fifth cheaper to
call than a string, a layout and flags.

Its grammar, which ``csrc/core/spec.cpp`` parses too::

    text   = spec [ "@" layout { "," word } ]       # without "@": layout bshd, no word
    spec   = field { ";" field }
    field  = key "=" value
    layout = "bshd" | "bhsd" | "sbhd" | "thd"
    word   = flag | norm
    flag   = "inverse" | "unscaled"
    norm   = ( "q_norm" | "k_norm" | "v_norm" ) "=" eps "|" weight_offset "|" ( "before" | "after" )

The keys are the fields of :class:`~rope_kernels.core.frequency.FrequencyParams` and
:class:`~rope_kernels.core.rotation.Rotation`. A field that has its default value is left out. A value is an integer, a
finite number, a word, numbers separated by ``,``, or rows of them separated by ``|``. An unknown key or word, one that
comes twice, and a missing key are errors.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from ..errors import RopeConfigError
from .frequency import FrequencyParams
from .layouts import LAYOUTS
from .norms import Norm
from .rotation import PAIRINGS, PHASES, TABLE_DTYPES, Rotation

__all__ = ["FLAGS", "NORMS", "Operation", "Spec", "adjoint", "parse_spec", "parse_text", "text_of", "with_norms"]

FLAGS = ("inverse", "unscaled")
NORMS = ("q_norm", "k_norm", "v_norm")
_WORDS = {"pairing": PAIRINGS, "phase": PHASES, "table_dtype": TABLE_DTYPES}
_FIELDS: dict[str, Field[Any]] = {field.name: field for part in (FrequencyParams, Rotation) for field in fields(part)}
_REQUIRED = [name for name, field in _FIELDS.items() if field.default is MISSING]
_LENGTHS = ("switch_length", "dynamic_length")  # in tokens, 64 bits; all other integers have 32
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

_Part = TypeVar("_Part", FrequencyParams, Rotation)


@dataclass(frozen=True)
class Spec:
    """The frequencies and the geometry of a head: all that the kernels get of a config."""

    frequency: FrequencyParams
    rotation: Rotation

    def encode(self) -> str:
        """The spec of the grammar above."""
        return self._encoded

    @cached_property
    def _encoded(self) -> str:
        encoded = []
        for part in (self.frequency, self.rotation):
            for field in fields(part):
                value = getattr(part, field.name)
                if value != field.default:
                    encoded.append(f"{field.name}={_encode(value)}")
        return ";".join(encoded)


@dataclass(frozen=True)
class Operation:
    """A parsed text: what one call of the operator computes, and the layout of its tensors.

    Attributes:
        spec: frequencies and geometry.
        layout: a key of :data:`~rope_kernels.core.layouts.LAYOUTS`.
        inverse: rotate back (the adjoint).
        unscaled: without attention scaling.
        q_norm, k_norm, v_norm: the norm of q's, k's or v's heads, or ``None``.
    """

    spec: Spec
    layout: str = "bshd"
    inverse: bool = False
    unscaled: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    v_norm: Norm | None = None


def text_of(spec: str, layout: str = "bshd", inverse: bool = False, unscaled: bool = False) -> str:
    """The operator's text for an encoded :class:`Spec` and the call's layout and flags."""
    if layout == "bshd" and not inverse and not unscaled:
        return spec
    return f"{spec}@{layout}{',inverse' if inverse else ''}{',unscaled' if unscaled else ''}"


def with_norms(text: str, q_norm: Norm | None, k_norm: Norm | None, v_norm: Norm | None = None) -> str:
    """The text of the same call with norms of q's, k's and v's heads."""
    words = [f"{n}={x.encode()}" for n, x in zip(NORMS, (q_norm, k_norm, v_norm), strict=True) if x is not None]
    return ",".join([text if "@" in text or not words else f"{text}@bshd", *words])


@lru_cache(maxsize=1024)
def parse_text(text: str) -> Operation:
    """The inverse of :func:`text_of`. Texts with the same spec share one :class:`Spec` object.

    Raises:
        RopeConfigError: the text is not of the grammar above; the message begins with ``spec``.
    """
    encoded, at, rest = text.partition("@")
    layout, *words = rest.split(",") if at else ["bshd"]
    if layout not in LAYOUTS:
        raise _refused(f"layout {layout!r}", LAYOUTS, layout)
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in (NORMS if equals else FLAGS):
            raise _refused(f"flag {word!r}", (*FLAGS, *NORMS), name)
        if name in given:
            raise RopeConfigError("spec", f"flag {name!r} comes twice")
        given[name] = Norm.decode(name, value) if equals else True
    return Operation(parse_spec(encoded), layout, **given)


@lru_cache(maxsize=1024)
def adjoint(text: str) -> str:
    """The text of the inverse rotation."""
    operation = parse_text(text)
    return text_of(text.partition("@")[0], operation.layout, not operation.inverse, operation.unscaled)


@lru_cache(maxsize=1024)
def parse_spec(encoded: str) -> Spec:
    """The inverse of :meth:`Spec.encode`.

    Raises:
        RopeConfigError: a key is unknown, comes twice or is missing, or its value is not allowed.
    """
    values: dict[str, str] = {}
    for part in encoded.split(";"):
        key, equals, value = part.partition("=")
        if not equals:
            raise RopeConfigError("spec", f"got {part!r}, must be key=value")
        if key not in _FIELDS:
            raise _refused(f"key {key!r}", _FIELDS, key)
        if key in values:
            raise RopeConfigError("spec", f"key {key!r} comes twice")
        values[key] = value
    for key in _REQUIRED:
        if key not in values:
            raise RopeConfigError("spec", f"key {key!r} is missing")
    spec = Spec(_read(FrequencyParams, values), _read(Rotation, values))
    _check_fit(spec.frequency, spec.rotation)
    return spec


def _encode(value: object) -> str:
    if isinstance(value, tuple):
        return ("|" if value and isinstance(value[0], tuple) else ",").join(map(_encode, value))
    return value if isinstance(value, str) else repr(value)


def _read(part: type[_Part], values: dict[str, str]) -> _Part:
    # _decode has checked each value against its field's type, which mypy cannot see.
    given = {name: _decode(name, str(_FIELDS[name].type), text) for name, text in values.items()}
    return part(**{field.name: given[field.name] for field in fields(part) if field.name in given})  # type: ignore[arg-type]


def _decode(key: str, kind: str, text: str) -> object:
    if kind.startswith("tuple[tuple"):
        return tuple(tuple(_number(key, x) for x in row.split(",")) for row in text.split("|"))
    if kind.startswith("tuple"):
        return tuple((_integer if "int" in kind else _number)(key, x) for x in text.split(","))
    if kind.startswith("str"):
        if text not in _WORDS[key]:
            raise _wrong(key, text, f"allowed are {', '.join(_WORDS[key])}")
        return text
    return _integer(key, text) if kind.startswith("int") else _number(key, text)


def _integer(key: str, text: str) -> int:
    bits = 63 if key in _LENGTHS else 31
    if not _INTEGER.fullmatch(text) or not -(1 << bits) <= int(text) < 1 << bits:
        raise _wrong(key, text, f"must be an integer of {bits + 1} bits")
    return int(text)


def _number(key: str, text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise _wrong(key, text, "must be a finite number")
    return float(text)


def _check_fit(p: FrequencyParams, r: Rotation) -> None:
    """Check what the kernels assume. ``check_fit`` in csrc/core/spec.cpp also bounds the number of pairs."""

    def require(holds: bool, key: str, value: object) -> None:
        if not holds:
            raise _wrong(key, str(value), "does not fit the other values")

    require(len(p.ramp) == 3, "ramp", p.ramp)
    require(r.num_pairs >= 1, "num_pairs", r.num_pairs)
    require(r.blocks >= 1 and r.num_pairs % max(r.blocks, 1) == 0, "blocks", r.blocks)
    require(r.rotary_offset >= 0, "rotary_offset", r.rotary_offset)
    width = r.num_pairs // r.blocks
    has_no_gaps = r.blocks > 1 or r.pairing == "interleaved_to_half"
    require(r.distance == width if has_no_gaps else r.distance >= width, "distance", r.distance)
    span = 2 * width if r.pairing == "interleaved" else r.distance + width
    require(r.rotary_offset + (r.blocks - 1) * 2 * r.distance + span <= r.head_dim, "head_dim", r.head_dim)
    require(len(r.axis) in (0, r.num_pairs) and all(axis >= 0 for axis in r.axis), "axis", r.axis)
    in_ladder = all(0 <= j < p.num_frequencies for j in r.freq_index)
    require(len(r.freq_index) in (0, r.num_pairs) and in_ladder, "freq_index", r.freq_index)
    require(bool(r.freq_index) or p.num_frequencies >= r.num_pairs, "num_frequencies", p.num_frequencies)
    require(all(len(row) >= p.num_frequencies for row in p.multipliers), "multipliers", p.multipliers)


def _refused(what: str, allowed: Iterable[str], word: str) -> RopeConfigError:
    close = difflib.get_close_matches(word, list(allowed), n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return RopeConfigError("spec", f"unknown {what}, allowed are {', '.join(allowed)}{meant}")


def _wrong(key: str, text: str, why: str) -> RopeConfigError:
    return RopeConfigError("spec", f"{key} is {text!r}, {why}")
