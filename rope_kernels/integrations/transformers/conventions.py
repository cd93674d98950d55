"""How an apply function takes its arguments, pairs channels and reads its table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["COLUMNS", "Convention", "Signature", "read_signature"]

COLUMNS = ("full", "first_half", "half_width", "complex")
"""What of the table is read: an entry per channel, the first half, an entry per pair, or a complex one per pair."""

_UNSQUEEZE = "unsqueeze_dim"
_COMPLEX = ("freqs_cis", "freqs_ci")


@dataclass(frozen=True)
class Signature:
    """The parameters of an apply function.

    Attributes:
        names: all of them, in order.
        rotated: those that are rotated, one or two.
        tables: ``("cos", "sin")``, or the one complex table.
        defaults: values of the others, which a call must not change for the kernels to serve it.
        insert: where the table gets the dimension of the heads, if that is an argument, by default.
    """

    names: tuple[str, ...]
    rotated: tuple[str, ...]
    tables: tuple[str, ...]
    defaults: tuple[tuple[str, Any], ...]
    insert: int | None


def read_signature(function: Callable[..., Any]) -> Signature | str | None:
    """The roles of a function's parameters by their names, or why they cannot be told; ``None`` if there is no table.

    Names only tell what to probe; what the function does with its arguments is measured.
    """
    try:
        # With the kernels package, decorated functions are modules.
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
    """What an apply function was measured to do.

    Attributes:
        signature: its parameters.
        pairing: "half", "interleaved" or "interleaved_to_half".
        columns: one of :data:`COLUMNS`.
        inverse: whether it turns the other way, as nanochat's.
        trailing: whether the last channels of a head turn, not the first.
        tokens_first: whether tokens come before heads, where no argument says so.
        batched: whether, where tokens come last, the function itself makes room for the heads in a batch of tables.
        prefix: whether tokens before those of a shorter table stay as they are.
        reshapes: whether the function gives the table its shape, so that only its size matters.
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
        """For reports: the pairing, and what else is unusual."""
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
        """Whether a pair finds one and the same angle at its two members in a table of this form."""
        if self.columns == "full":
            return (form, self.pairing) in {("halves", "half"), ("neighbours", "interleaved")}
        return form == {"first_half": "halves", "half_width": "half_width", "complex": "complex"}[self.columns]

    def tokens_are_first(self, insert: int | None, rank: int) -> bool | None:
        """The order of q's tokens and heads for a table of ``rank`` dimensions; ``None`` where it has neither."""
        if insert is None:
            return self.tokens_first
        axis = insert if insert >= 0 else insert + rank + 1
        return {rank - 1: True, rank - 2: False}.get(axis)
