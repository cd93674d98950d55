"""The conventions of apply functions: their arguments, how they pair channels, how they read the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["COLUMNS", "Convention", "Signature", "read_signature"]

COLUMNS = ("full", "first_half", "half_width", "complex")
"""The part of the table that is read: an entry per channel, the first half, an entry or a complex number per pair."""

_UNSQUEEZE = "unsqueeze_dim"
_COMPLEX = ("freqs_cis", "freqs_ci")


@dataclass(frozen=True)
class Signature:
    """The parameters of an apply function.

    Attributes:
        names: all parameters, in order.
        rotated: the tensors to rotate, one or two.
        tables: ``("cos", "sin")``, or the one complex table.
        defaults: values of the other parameters; the kernels serve only calls that do not change them.
        insert: default of the argument that says where the table gets the dimension of the heads, if there is one.
    """

    names: tuple[str, ...]
    rotated: tuple[str, ...]
    tables: tuple[str, ...]
    defaults: tuple[tuple[str, Any], ...]
    insert: int | None


def read_signature(function: Callable[..., Any]) -> Signature | str | None:
    """The roles of a function's parameters by their names, or why they are unclear; ``None`` if there is no table.

    Names only decide what to probe. What the function does with its arguments is measured.
    """
    try:
        # decorated functions are modules if the kernels package is installed
        called = function.forward if isinstance(function, nn.Module) else function
        parameters = [p for p in inspect.signature(called).parameters.values() if p.kind is not p.VAR_KEYWORD]
    except (TypeError, ValueError):
        return None
    names = tuple(p.name for p in parameters)
    tables = ("cos", "sin") if {"cos", "sin"} <= set(names) else tuple(n for n in names if n in _COMPLEX)
    first = min((names.index(name) for name in tables), default=0)
    if first == 0:
        return None
    others = [p for p in parameters[first:] if p.name not in (*tables, _UNSQUEEZE)]
    usual = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if first > 2 or not usual or any(p.default is p.empty for p in others):
        return f"it takes ({', '.join(names)}), not one or two tensors and a table"
    insert = next((p.default for p in parameters if p.name == _UNSQUEEZE), None)
    return Signature(names, names[:first], tables, tuple((p.name, p.default) for p in others), insert)


@dataclass(frozen=True)
class Convention:
    """How an apply function rotates, as measured.

    Attributes:
        signature: its parameters.
        pairing: "half", "interleaved" or "interleaved_to_half".
        columns: one of :data:`COLUMNS`.
        inverse: whether it rotates backwards, as nanochat's does.
        trailing: whether it rotates the last channels of a head, not the first.
        tokens_first: whether tokens come before heads, if no argument says so.
        batched: whether, with heads before tokens, the function itself adds the heads' dimension to a batch of tables.
        prefix: whether a shorter table is for the last tokens, and those before stay unchanged.
        reshapes: whether the function reshapes the table, so that only its size matters.
    """

    signature: Signature
    pairing: str
    columns: str
    inverse: bool = False
    trailing: bool = False
    tokens_first: bool = False
    batched: bool = False
    prefix: bool = False
    reshapes: bool = False

    @property
    def name(self) -> str:
        """For reports: the pairing, and any other unusual property."""
        words = [self.pairing]
        if self.columns != "full" and (self.pairing, self.columns) != ("interleaved_to_half", "first_half"):
            words.append({"first_half": "repeat-2", "half_width": "half-width", "complex": "complex"}[self.columns])
        for word in ("trailing", "prefix"):
            if getattr(self, word):
                words.append(word)
        if self.inverse:
            words.append("conjugate")
        return ", ".join(words)

    def reads(self, form: str) -> bool:
        """Whether the function reads one angle for both members of each pair from a table of this form."""
        if self.columns == "full":
            return (form, self.pairing) in {("halves", "half"), ("neighbours", "interleaved")}
        return form == {"first_half": "halves", "half_width": "half_width", "complex": "complex"}[self.columns]

    def tokens_are_first(self, insert: int | None, rank: int) -> bool | None:
        """Whether q's tokens come before its heads, for a table of ``rank`` dimensions; ``None`` if neither fits."""
        if insert is None:
            return self.tokens_first
        axis = insert if insert >= 0 else insert + rank + 1
        return {rank - 1: True, rank - 2: False}.get(axis)
