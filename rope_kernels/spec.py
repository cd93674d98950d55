"""All that the op needs to know of a config, as one readable string.

A string is a constant to ``torch.compile`` and ``torch.export``, holds doubles exactly, cannot be cast by
``.to(dtype)``, and lets the op's schema stay as it is when a rope type is added.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

from .frequency import FrequencyParams
from .rotation import Rotation

__all__ = ["Spec", "parse_spec"]


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


@lru_cache(maxsize=1024)
def parse_spec(text: str) -> Spec:
    """The inverse of :meth:`Spec.encode`."""
    values = dict(part.split("=", 1) for part in text.split(";"))

    def read(cls: type) -> Any:
        kinds = {field.name: str(field.type) for field in fields(cls)}
        return cls(**{name: _decode(kind, values[name]) for name, kind in kinds.items() if name in values})

    return Spec(read(FrequencyParams), read(Rotation))
