"""Cosines and sines of the last calls on the CPU, for the next layers of a model, which rotate by the same positions.

Positions are compared by value, which on the CPU costs less than one operation on them: so a change in place is seen,
however it was made, and a new tensor with the same positions is recognised.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.spec import Spec
from .angles import is_watched, kept_tensors, wide_cos_sin
from .inputs import Inputs
from .passes import MAX_BYTES, Table, table_of

__all__ = ["LIMIT", "recalled_table"]

LIMIT = 8
"""Tables that are kept: one for each spec and direction."""


class _Call(NamedTuple):
    """What a kept table was made of, and the table."""

    spec: Spec  # keeps its id from being given to another one
    batch: int
    tokens: int
    tensors: tuple[Tensor | None, ...]
    table: Table


_kept: dict[tuple[int, bool, bool], _Call] = {}
_lock = threading.Lock()


def recalled_table(batch: int, tokens: int, inputs: Inputs, spec: Spec) -> Table:
    """The table of a call on CPU tensors: the last one of this spec if it was of the same positions and lengths."""
    key = id(spec), inputs.inverse, inputs.unscaled
    if is_watched():
        return _made(batch, tokens, inputs, spec)
    given = inputs.positions, inputs.offset, inputs.seq_len, inputs.from_seq_len, inputs.cu_seqlens
    last = _kept.get(key)
    if last is not None and last.tokens == tokens and last.batch == batch and _are_same(given, last.tensors):
        return last.table
    with kept_tensors():
        table = _made(batch, tokens, inputs, spec)
        if table.sin_first.nbytes <= MAX_BYTES:
            tensors = tuple(None if t is None else t.clone() for t in given)
            _keep(key, _Call(spec, batch, tokens, tensors, table))
    return table


def _made(batch: int, tokens: int, inputs: Inputs, spec: Spec) -> Table:
    cos, sin = wide_cos_sin(batch, tokens, torch.device("cpu"), inputs, spec)
    return table_of(cos, sin, spec.rotation, inputs.inverse)


def _are_same(given: tuple[Tensor | None, ...], kept: tuple[Tensor | None, ...]) -> bool:
    for x, y in zip(given, kept, strict=True):
        if x is not y and (x is None or y is None or x.dtype is not y.dtype or not torch.equal(x, y)):
            return False
    return True


def _keep(key: tuple[int, bool, bool], call: _Call) -> None:
    with _lock:
        _kept.pop(key, None)
        while len(_kept) >= LIMIT:
            del _kept[next(iter(_kept))]
        _kept[key] = call
