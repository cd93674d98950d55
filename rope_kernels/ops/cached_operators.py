"""The operators that rotate q and k by the rows of a cos/sin table: ``rotate_cached_`` and ``rotate_cached_out``.

The caller has checked all arguments but the values of positions. They have no gradient: what they write is for
inference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backend_for
from ..core.layouts import position_axes, tokens_first
from ..errors import RopeShapeError
from . import direct
from .operators import LIBRARY, TAGS, table_rotation

__all__ = ["CachedArguments", "check_rows", "rotate_cached_", "rotate_cached_out"]

_ARGUMENTS = "Tensor positions, Tensor cos, Tensor sin, str pairing, str layout"
_OUTPUTS = "Tensor(a!) q_out, Tensor(b!)? k_out"


class CachedArguments(NamedTuple):
    """The arguments after q and k in both schemas.

    Attributes:
        positions: int32 or int64, (tokens,) or with a batch (batch or 1, tokens): rows of the table.
        cos: (rows, pairs), any floating dtype.
        sin: like cos.
        pairing: "half" or "interleaved".
        layout: of q and k.
    """

    positions: Tensor
    cos: Tensor
    sin: Tensor
    pairing: str
    layout: str


def _into(q: Tensor, k: Tensor | None, args: CachedArguments, q_out: Tensor, k_out: Tensor | None) -> None:
    if q.numel() == 0 and (k is None or k.numel() == 0):
        return
    layout, positions = args.layout, position_axes(args.positions, args.layout)
    assert positions is not None
    if q.is_cpu:
        check_rows(args.positions, args.cos.shape[0])
    wide_q, wide_k = tokens_first(q, layout), None if k is None else tokens_first(k, layout)
    wide_q_out = wide_q if q_out is q else tokens_first(q_out, layout)
    wide_k_out = wide_k if k_out is k or k_out is None else tokens_first(k_out, layout)
    rotation = table_rotation(q.shape[-1], 2 * args.cos.shape[1], args.pairing)
    launched = backend_for(q.device).rotate_cached(
        wide_q, wide_k, wide_q_out, wide_k_out, positions[0], args.cos, args.sin, rotation
    )
    if launched is not None:
        direct.remember_cached(
            q, k, args.positions, args.cos, args.sin, None, args.pairing, layout, q_out, k_out, *launched
        )


def check_rows(positions: Tensor, rows: int) -> None:
    """Raise :class:`RopeShapeError` unless each position, on a CPU, is one of a table's rows."""
    least, most = (int(t) for t in positions.aminmax())
    if least < 0 or most >= rows:
        wrong = least if least < 0 else most
        raise RopeShapeError(f"positions: got {wrong}, the table has rows 0 to {rows - 1}")


def _rotate_cached_(q: Tensor, k: Tensor | None, *args: Any) -> None:
    _into(q, k, CachedArguments(*args), q, k)


def _rotate_cached_out(q: Tensor, k: Tensor | None, *args: Any) -> None:
    count = len(CachedArguments._fields)
    _into(q, k, CachedArguments(*args[:count]), *args[count:])


def _fake(q: Tensor, k: Tensor | None, *args: Any) -> None:
    return None


for _name, _schema, _implementation in (
    ("rotate_cached_", f"(Tensor(a!) q, Tensor(b!)? k, {_ARGUMENTS}) -> ()", _rotate_cached_),
    ("rotate_cached_out", f"(Tensor q, Tensor? k, {_ARGUMENTS}, {_OUTPUTS}) -> ()", _rotate_cached_out),
):
    LIBRARY.define(_name + _schema, tags=TAGS)
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    LIBRARY.impl(_name, _fake, "Meta")
# Called by the native backend alone.
LIBRARY.define(f"native_rotate_cached_out(Tensor q, Tensor? k, {_ARGUMENTS}, {_OUTPUTS}) -> ()")

rotate_cached_ = torch.ops.rope_kernels.rotate_cached_.default
rotate_cached_out = torch.ops.rope_kernels.rotate_cached_out.default
