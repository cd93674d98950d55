"""All that the op needs to know of a config and of how it is called, as one readable string.

A string is a constant to ``torch.compile`` and ``torch.export``, holds doubles exactly, cannot be cast by
``.to(dtype)``, and lets the op's schema stay as it is when a rope type is added. A schema with one such argument is
also a fifth cheaper to call than one with a layout and flags beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

from .frequency import FrequencyParams
from .rotation import Rotation

__all__ = ["Call", "Spec", "adjoint", "parse_call", "parse_spec", "with_call"]


@dataclass(frozen=True)
class Spec:
    """Frequencies and rotation together: what one call of the op computes."""

    frequency: FrequencyParams
    rotation: Rotation

    def encode(self) -> str:
        """``field=value`` of everything that differs from its default, separated by ``;``."""
        return self._encoded

    @cached_property
    def _encoded(self) -> str:
        parts = []
        for part in (self.frequency, self.rotation):
            for field in fields(part):
                value = getattr(part, field.name)
                if value != field.default:
                    parts.append(f"{field.name}={_encode(value)}")
        return ";".join(parts)


def _encode(value: object) -> str:
    if isinstance(value, tuple):
        return ("|" if value and isinstance(value[0], tuple) else ",").join(map(_encode, value))
    return value if isinstance(value, str) else repr(value)


def _decode(kind: str, text: str) -> object:
    if kind.startswith("tuple[tuple"):
        return tuple(tuple(map(float, row.split(","))) for row in text.split("|"))
    if kind.startswith("tuple"):
        return tuple(map(int if "int" in kind else float, text.split(",")))
    if kind.startswith("str"):
        return text
    return int(text) if kind.startswith("int") else float(text)


@dataclass(frozen=True)
class Call:
    """What is fixed in a call beside the config: the fields of :class:`~rope_kernels.backends.inputs.Inputs`."""

    layout: str = "bshd"
    inverse: bool = False
    unscaled: bool = False


@lru_cache(maxsize=1024)
def with_call(spec: str, layout: str = "bshd", inverse: bool = False, unscaled: bool = False) -> str:
    """The op's text: an encoded :class:`Spec`, then, unless it is the usual one, ``@`` and the call's words."""
    if layout == "bshd" and not inverse and not unscaled:
        return spec
    return f"{spec}@{layout}{',inverse' if inverse else ''}{',unscaled' if unscaled else ''}"


@lru_cache(maxsize=1024)
def parse_call(text: str) -> Call:
    """The inverse of :func:`with_call`, as far as the call goes."""
    layout, *words = (text.partition("@")[2] or "bshd").split(",")
    return Call(layout, "inverse" in words, "unscaled" in words)


@lru_cache(maxsize=1024)
def adjoint(text: str) -> str:
    """The text of the rotation back."""
    call = parse_call(text)
    return with_call(text.partition("@")[0], call.layout, not call.inverse, call.unscaled)


def parse_spec(text: str) -> Spec:
    """The inverse of :meth:`Spec.encode`; one object per spec, however it is called."""
    return _parse_spec(text.partition("@")[0])


@lru_cache(maxsize=1024)
def _parse_spec(text: str) -> Spec:
    values = dict(part.split("=", 1) for part in text.split(";"))

    def read(cls: type) -> Any:
        kinds = {field.name: str(field.type) for field in fields(cls)}
        return cls(**{name: _decode(kind, values[name]) for name, kind in kinds.items() if name in values})

    return Spec(read(FrequencyParams), read(Rotation))
