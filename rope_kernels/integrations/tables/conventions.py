"""How a function rotates by a table: its arguments, the form of its table, the axes and the pairs, as measured."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Convention", "Key", "Signature", "read_signature", "structure_of"]

_TABLE = re.compile("cos|sin|freq|rope|rot|emb|cis")

Key = tuple[tuple[Any, ...], int, str, int]
"""Of a call: the values of its options, the rank of x, the structure of the table and its rank."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a function that rotates.

    Attributes:
        names: all parameters, in order.
        rotated: the tensors to rotate, one or two.
        tables: the table, one argument or two.
        options: names and defaults of the other parameters.
    """

    names: tuple[str, ...]
    rotated: tuple[str, ...]
    tables: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    def options_of(self, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The options of a call, or ``None`` if one is neither a flag nor a number."""
        chosen = tuple([values.get(name, default) for name, default in self.options])
        return chosen if all(value is None or isinstance(value, (bool, int)) for value in chosen) else None


def read_signature(function: Callable[..., Any]) -> Signature | str:
    """The roles of a function's parameters by their names, or why they are unclear.

    Names only decide what to probe. What the function does with its arguments is measured.
    """
    parameters = list(inspect.signature(function).parameters.values())
    names = tuple(p.name for p in parameters)
    needed = [p.name for p in parameters if p.default is p.empty]
    first = next((place for place, name in enumerate(needed) if place and _TABLE.search(name)), 0)
    tables = tuple(needed[first:])
    usual = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    if not usual or first not in (1, 2) or len(tables) > 2 or not all(map(_TABLE.search, tables)):
        return f"it takes ({', '.join(names)}), not one or two tensors and a table"
    options = tuple((p.name, p.default) for p in parameters if p.default is not p.empty)
    return Signature(names, tuple(needed[:first]), tables, options)


def structure_of(tables: Sequence[Any]) -> tuple[str, tuple[Tensor, ...]] | None:
    """Whether a table is "two" arguments, a "pair" in one, or one "complex" or "real" tensor; and its tensors."""
    held = tables[0] if len(tables) == 1 and isinstance(tables[0], (tuple, list)) else tables
    if len(held) not in (1, 2) or not all(isinstance(table, Tensor) for table in held):
        return None
    if len(held) == 1:
        return ("complex" if held[0].is_complex() else "real"), (held[0],)
    if held[0].shape != held[1].shape or held[0].is_complex() or held[1].is_complex():
        return None
    return ("two" if held is tables else "pair"), (held[0], held[1])


@dataclass(frozen=True)
class Convention:
    """How a function rotates in calls of one :data:`Key`, as measured.

    Attributes:
        key: the calls that it is about.
        kind: what the table holds: "cos_sin" or "sin_cos" (two tensors in this order), "complex", "matrix" (2x2 per
            pair), "angles", or both tables in one tensor, "cos|sin" and "sin|cos".
        axes: for each dimension of the table before its channels, the axis of x that it belongs to.
        pairing: "half" or "interleaved".
        reads: "full", an entry per channel; "pairs", one per pair; "apart", the cosine of a pair's first channel and
            the sine of its second.
        channels: the axis of x with the channels of a head.
        dtype: of the result, if it is always the same; otherwise it is x's.
        promotes: whether the result has the wider dtype of x and the table instead.
    """

    key: Key
    kind: str
    axes: tuple[int, ...]
    pairing: str
    reads: str
    channels: int = -1
    dtype: torch.dtype | None = None
    promotes: bool = False

    @property
    def name(self) -> str:
        """For reports: the pairing, and any other unusual property."""
        words = [self.pairing]
        if self.kind not in ("cos_sin", "sin_cos"):
            words.append({"matrix": "2x2"}.get(self.kind, self.kind))
        words += ["half-width"] if self.reads == "pairs" and self.kind in ("cos_sin", "sin_cos") else []
        words += ["per head"] if len(self.axes) + 1 - (0 in self.axes) > 2 else []
        words += ["channels before tokens"] if self.channels != -1 else []
        return ", ".join(words)

    @property
    def splits(self) -> bool:
        """Whether x has all heads in one axis, and the table has an axis of heads."""
        return self.key[1] == 3 and len(self.axes) == 3

    def cos_sin(self, tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The cosines and sines in the table, an entry per channel, in fp32."""
        cos, sin = _parts(self.kind, tables)
        cos, sin = cos.to(torch.float32), sin.to(torch.float32)
        if self.reads == "apart":
            cos, sin = cos[..., 0::2], sin[..., 1::2]
        if self.reads == "full":
            return cos, sin
        if self.pairing == "interleaved":
            return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def _parts(kind: str, tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    table = tables[0]
    if kind == "cos_sin":
        return table, tables[1]
    if kind == "sin_cos":
        return tables[1], table
    if kind == "complex":
        return table.real, table.imag
    if kind == "angles":
        return table.cos(), table.sin()
    if kind == "matrix":
        # ((m00, m01), (m10, m11)) turns (a, b) into (a m00 + b m01, b m11 + a m10).
        cos = torch.stack((table[..., 0, 0], table[..., 1, 1]), -1)
        sin = torch.stack((-table[..., 0, 1], table[..., 1, 0]), -1)
        return cos.flatten(-2), sin.flatten(-2)
    first, second = table.chunk(2, dim=-1)
    return (first, second) if kind == "cos|sin" else (second, first)
