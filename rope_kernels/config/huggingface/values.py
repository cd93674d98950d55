"""The fields read so far, each with its origin, and the conversion of values such as ``"4.0"`` to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import RopeConfigError
from ..fields import RopeFields
from ..rope_types import ROPE_TYPES, YARN_SCALING, yarn_scaling
from ..validation import raise_or_warn

__all__ = ["Table", "Values", "plain"]

_KINDS = {f.name: str(f.type) for f in fields(RopeFields)}
_BOOLS = {"true": True, "false": False}


@dataclass(frozen=True)
class Table:
    """A dict of rope parameters.

    Attributes:
        name: its name in messages.
        values: its keys and values.
        fallback: whether its values are only defaults.
        lone: whether ``name`` is itself the key of the value.
    """

    name: str
    values: Mapping[str, Any]
    fallback: bool = False
    lone: bool = False

    def origin(self, key: str) -> str:
        """Where the value of ``key`` came from."""
        return self.name if self.fallback or self.lone else f"{self.name}.{key}"


def plain(field: str, value: Any) -> Any:
    """``value`` as the type of ``field``: ``"4.0"`` is a number, 4096.0 an integer, ``"false"`` a bool.

    A value that is not clearly of that type is returned unchanged; :class:`RopeConfig` refuses it.
    """
    kind = _KINDS.get(field, "")
    if kind.startswith("Sequence"):
        inner = int if "int" in kind else float
        return [_number(x, inner) for x in value] if isinstance(value, (list, tuple)) else value
    if kind.startswith("bool"):
        return _BOOLS.get(value.strip().lower(), value) if isinstance(value, str) else value
    return _number(value, int if kind.startswith("int") else float) if kind.startswith(("int", "float")) else value


def _number(value: Any, kind: type) -> Any:
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
    whole = kind is int and isinstance(number, float) and math.isfinite(number) and number.is_integer()
    return int(number) if whole else number


class Values:
    """Fields found so far, each with its origin. Two spellings of one field must agree."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.fields: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self._attn_factor: tuple[float, str] | None = None

    @property
    def rope_type(self) -> str:
        """The rope type found so far."""
        return str(self.fields.get("rope_type", "default"))

    def takes(self, field: str) -> bool:
        """Whether the type reads ``field``."""
        return self.rope_type in ROPE_TYPES and ROPE_TYPES[self.rope_type].takes(field)

    def put(self, field: str, value: Any, origin: str) -> None:
        """Record a value unless it is ``None``. Without ``strict`` the first of two different values wins."""
        if value is None:
            return
        value = plain(field, value)
        if field not in self.fields:
            self.replace(field, value, origin)
        elif self.fields[field] != value:
            first = f"{self.fields[field]!r} from {self.origins[field]}"
            raise_or_warn(field, f"got {first} and {value!r} from {origin}; they must agree", self.strict)

    def default(self, field: str, value: Any, origin: str) -> None:
        """Record a value unless there is one."""
        if value is not None and field not in self.fields:
            self.replace(field, plain(field, value), origin)

    def replace(self, field: str, value: Any, origin: str) -> None:
        """Record a value in place of an earlier one."""
        self.fields[field] = value
        self.origins[field] = origin

    def multiply(self, attn_factor: Any, origin: str) -> None:
        """Record an ``attn_factor``, for :meth:`finish`."""
        if attn_factor is not None:
            self._attn_factor = plain("attention_factor", attn_factor), origin

    def finish(self) -> None:
        """Multiply YaRN's own scaling by ``attn_factor``, as YaRN's authors, vLLM and SGLang do.

        Raises:
            RopeConfigError: another rope type, no number, or an ``attention_factor`` that disagrees.
        """
        if self._attn_factor is None:
            return
        given, origin = self._attn_factor
        if self.rope_type != "yarn":
            raise_or_warn(origin, f"got {given!r}, which only yarn reads; see attention_factor", self.strict)
            return
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise RopeConfigError(origin, f"got {given!r} ({type(given).__name__}), must be a number")
        own = yarn_scaling({name: self.fields.get(name) for name in YARN_SCALING})
        product, total = given * own, self.fields.get("attention_factor")
        text = f"{origin} {given!r} times yarn's own {own:.6g}; transformers does not read attn_factor"
        if total is not None and not math.isclose(total, product, rel_tol=1e-6):
            first = f"{total!r} from {self.origins['attention_factor']}"
            raise_or_warn("attention_factor", f"got {first} and {product!r}, {text}; they must agree", self.strict)
        elif total is None:
            self.replace("attention_factor", product, text)

    def note(self, origin: str, value: Any, why: str) -> None:
        """Record a key that is known but not used, for ``explain()``."""
        if value is not None:
            self.origins[origin] = f"{value!r} is not used: {why}"

    def remark(self, about: str, text: str) -> None:
        """Record a line for ``explain()``."""
        self.origins[about] = text
