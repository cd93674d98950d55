"""The operators ``rope_kernels::*``: schemas, shapes for tracing, and the call of a backend.

The native library defines the operators that it implements, for processes without Python; here are the others, and all
of them where there is no library. The caller has checked all arguments. Gradients are in :mod:`.autograd` and
:mod:`.table_autograd`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backend_for, native
from ..backends.inputs import Inputs
from ..core.layouts import LAYOUTS, position_axes, tokens_first
from ..core.rotation import PAIRINGS, Rotation
from ..core.spec import Operation, parse_text
from ..errors import RopeConfigError
from . import direct

__all__ = [
    "INDEX_TENSORS",
    "LIBRARY",
    "TAGS",
    "Arguments",
    "inputs_of",
    "rotate",
    "rotate_",
    "rotate_out",
    "rotate_table",
    "table_rotation",
]

LIBRARY = torch.library.Library("rope_kernels", "FRAGMENT")
INDEX_TENSORS = "Tensor? positions, Tensor? offset, Tensor? seq_len, Tensor? from_seq_len, Tensor? cu_seqlens"
_TABLE = "Tensor cos, Tensor sin, int rotary_dim, str pairing, str layout, bool inverse"
_OUTPUTS = "Tensor(a!) q_out, Tensor(b!)? k_out"
TAGS = (torch.Tag.pt2_compliant_tag,)

# The library's are in csrc/ops/schemas.cpp. "spec" is the operator's text: the argument keeps the name it had when the
# text was a spec alone.
_SCHEMAS = {
    "rotate": f"(Tensor q, Tensor? k, {INDEX_TENSORS}, str spec) -> (Tensor, Tensor)",
    "rotate_": f"(Tensor(a!) q, Tensor(b!)? k, {INDEX_TENSORS}, str spec) -> ()",
    "rotate_out": f"(Tensor q, Tensor? k, {INDEX_TENSORS}, str spec, {_OUTPUTS}) -> ()",
    "rotate_table": f"(Tensor q, Tensor? k, {_TABLE}) -> (Tensor, Tensor)",
}
_NATIVE_SCHEMAS = {
    "native_rotate_out": _SCHEMAS["rotate_out"],
    "native_rotate_table_out": f"(Tensor q, Tensor? k, {_TABLE}, {_OUTPUTS}) -> ()",
}
"""Called by the native backend alone."""


class Arguments(NamedTuple):
    """The arguments after q and k in the schemas of ``rotate``, ``rotate_`` and ``rotate_out``.

    Attributes:
        positions: integers or floats, in a shape of :func:`rope_kernels.apply_rope`; ``None`` counts from 0.
        offset: int64 (1,), (batch,) or (sequences,), added to counted positions.
        seq_len: int64 (1,), (batch,) or (sequences,), the length that chooses the frequencies.
        from_seq_len: as ``seq_len``; the call then rotates by the difference between the two lengths.
        cu_seqlens: int32 or int64 (sequences + 1,), the bounds of packed sequences.
        text: the operator's text; see :mod:`rope_kernels.core.spec`.
    """

    positions: Tensor | None
    offset: Tensor | None
    seq_len: Tensor | None
    from_seq_len: Tensor | None
    cu_seqlens: Tensor | None
    text: str


def inputs_of(args: Arguments, operation: Operation) -> Inputs:
    """The arguments as backends take them."""
    return Inputs(
        position_axes(args.positions, operation.layout), args.offset, args.seq_len, args.from_seq_len, args.cu_seqlens,
        operation.inverse, operation.unscaled,
    )  # fmt: skip


def _new_outputs(q: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor]:
    """New outputs. An operator cannot return ``None``, so without k the second one is empty."""
    return torch.empty_like(q), q.new_empty(0) if k is None else torch.empty_like(k)


def _into(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, args: Arguments) -> None:
    operation = parse_text(args.text)
    if q.numel() == 0 and (k is None or k.numel() == 0):
        return
    layout = operation.layout
    wide_q = tokens_first(q, layout)
    wide_k = None if k is None else tokens_first(k, layout)
    wide_q_out = wide_q if q_out is q else tokens_first(q_out, layout)
    wide_k_out = wide_k if k_out is k or k_out is None else tokens_first(k_out, layout)
    inputs = inputs_of(args, operation)
    launched = backend_for(q.device).rotate(wide_q, wide_k, wide_q_out, wide_k_out, inputs, operation.spec)
    if launched is not None:
        direct.remember(q, k, *args, q_out, k_out, *launched)


def _rotate(
    q: Tensor, k: Tensor | None,
    positions: Tensor | None, offset: Tensor | None, seq_len: Tensor | None,
    from_seq_len: Tensor | None, cu_seqlens: Tensor | None,
    spec: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q_out, k_out = _new_outputs(q, k)
    args = Arguments(positions, offset, seq_len, from_seq_len, cu_seqlens, spec)
    _into(q, k, q_out, None if k is None else k_out, args)
    return q_out, k_out


def _rotate_(
    q: Tensor, k: Tensor | None,
    positions: Tensor | None, offset: Tensor | None, seq_len: Tensor | None,
    from_seq_len: Tensor | None, cu_seqlens: Tensor | None,
    spec: str,
) -> None:  # fmt: skip
    _into(q, k, q, k, Arguments(positions, offset, seq_len, from_seq_len, cu_seqlens, spec))


def _rotate_out(
    q: Tensor, k: Tensor | None,
    positions: Tensor | None, offset: Tensor | None, seq_len: Tensor | None,
    from_seq_len: Tensor | None, cu_seqlens: Tensor | None,
    spec: str,
    q_out: Tensor, k_out: Tensor | None,
) -> None:  # fmt: skip
    _into(q, k, q_out, k_out, Arguments(positions, offset, seq_len, from_seq_len, cu_seqlens, spec))


def table_rotation(head_dim: int, rotary_dim: int, pairing: str) -> Rotation:
    """The geometry of the table operator: it rotates the first ``rotary_dim`` channels of a head."""
    return Rotation(head_dim, rotary_dim // 2, rotary_dim // 2, pairing=pairing)


def _check_words(pairing: str, layout: str) -> None:
    for name, word, allowed in (("pairing", pairing, PAIRINGS), ("layout", layout, tuple(LAYOUTS))):
        if word not in allowed:
            raise RopeConfigError(name, f"got {word!r}, allowed are {', '.join(allowed)}")


def _rotate_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, rotary_dim: int, pairing: str, layout: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    _check_words(pairing, layout)
    q_out, k_out = _new_outputs(q, k)
    if q.numel() or (k is not None and k.numel()):
        launched = backend_for(q.device).rotate_table(
            tokens_first(q, layout),
            None if k is None else tokens_first(k, layout),
            tokens_first(q_out, layout),
            None if k is None else tokens_first(k_out, layout),
            cos,
            sin,
            table_rotation(q.shape[-1], rotary_dim, pairing),
            inverse,
        )
        if launched is not None:
            written = None if k is None else k_out
            direct.remember_table(q, k, cos, sin, layout, pairing, inverse, q_out, written, *launched)
    return q_out, k_out


def _check_text(*args: Any) -> None:
    """Refuse a wrong text while the call is traced. ``args``: those after q and k, in the order of the schemas."""
    parse_text(args[Arguments._fields.index("text")])


def _fake_rotate(q: Tensor, k: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    _check_text(*args)
    return _new_outputs(q, k)


def _fake_rotate_(q: Tensor, k: Tensor | None, *args: Any) -> None:
    _check_text(*args)


def _fake_rotate_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, rotary_dim: int, pairing: str, layout: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    _check_words(pairing, layout)
    return _new_outputs(q, k)


def _define(name: str, schema: str, tags: tuple[torch.Tag, ...] = TAGS) -> None:
    """Define an operator that the library has not defined."""
    if not hasattr(torch.ops.rope_kernels, name):
        LIBRARY.define(name + schema, tags=tags)


def _for_library(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """The same for calls from the library, which is told what is raised."""

    @functools.wraps(implementation)
    def call(*args: Any) -> Any:
        try:
            return implementation(*args)
        except Exception as error:
            native.tell_error(str(error))
            raise

    return call


native.load()
direct.load()
for _name, _implementation, _fake in (
    ("rotate", _rotate, _fake_rotate),
    ("rotate_", _rotate_, _fake_rotate_),
    ("rotate_out", _rotate_out, _fake_rotate_),
    ("rotate_table", _rotate_table, _fake_rotate_table),
):
    # python_<name> is the same operator in Python. The C++ implementation calls it when this thread has chosen
    # another backend with use_backend().
    for _operator, _called in ((_name, _implementation), (f"python_{_name}", _for_library(_implementation))):
        _define(_operator, _SCHEMAS[_name])
        LIBRARY.impl(_operator, _called, "CompositeExplicitAutograd")
        # Not by register_fake(): for an operator that C++ defined it asks for a call that torch 2.11 does not have.
        LIBRARY.impl(_operator, _fake, "Meta")
for _name, _schema in _NATIVE_SCHEMAS.items():
    _define(_name, _schema, ())

rotate = torch.ops.rope_kernels.rotate.default
rotate_ = torch.ops.rope_kernels.rotate_.default
rotate_out = torch.ops.rope_kernels.rotate_out.default
rotate_table = torch.ops.rope_kernels.rotate_table.default
