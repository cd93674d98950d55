"""The operators ``rope_kernels::*``: schema, shapes for tracing, and the way to a backend.

A call arrives here with everything checked. How gradients go through the operators is in :mod:`.autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import backend_for, direct, native
from .backends.inputs import Inputs
from .rotation import Rotation
from .spec import parse_call, parse_spec

__all__ = [
    "LIBRARY",
    "from_tokens_first",
    "inputs_of",
    "rotate",
    "rotate_",
    "rotate_out",
    "rotate_table",
    "table_rotation",
    "tokens_first",
]

LIBRARY = torch.library.Library("rope_kernels", "DEF")
_RUN_TIME = "Tensor? positions, Tensor? offset, Tensor? seq_len, Tensor? from_seq_len, Tensor? cu_seqlens"
_TAGS = (torch.Tag.pt2_compliant_tag,)

_SCHEMAS = {
    "rotate": f"(Tensor q, Tensor? k, {_RUN_TIME}, str spec) -> (Tensor, Tensor)",
    "rotate_": f"(Tensor(a!) q, Tensor(b!)? k, {_RUN_TIME}, str spec) -> ()",
    "rotate_out": f"(Tensor q, Tensor? k, {_RUN_TIME}, str spec, Tensor(a!) q_out, Tensor(b!)? k_out) -> ()",
    "rotate_table": "(Tensor q, Tensor? k, Tensor cos, Tensor sin, int rotary_dim, str pairing, str layout, "
    "bool inverse) -> (Tensor, Tensor)",
}


def tokens_first(x: Tensor, layout: str) -> Tensor:
    """The (batch, tokens, heads, head_dim) view of a tensor in ``layout``."""
    if layout == "bshd":
        return x
    return x.transpose(1, 2) if layout == "bhsd" else x.unsqueeze(0)


def from_tokens_first(x: Tensor, layout: str) -> Tensor:
    """The inverse of :func:`tokens_first`."""
    if layout == "bshd":
        return x
    return x.transpose(1, 2) if layout == "bhsd" else x.squeeze(0)


def _position_rows(positions: Tensor | None, layout: str) -> Tensor | None:
    """(axes, batch or 1, tokens) view of the forms that the public API takes."""
    if positions is None or positions.dim() == 3:
        return positions
    if positions.dim() == 1:
        return positions[None, None]
    return positions[:, None] if layout == "thd" else positions[None]


def inputs_of(run_time: Sequence[Tensor | None], layout: str, inverse: bool, unscaled: bool) -> Inputs:
    """The backends' form of (positions, offset, seq_len, from_seq_len, cu_seqlens) and the flags."""
    positions, offset, seq_len, from_seq_len, cu_seqlens = run_time
    rows = _position_rows(positions, layout)
    return Inputs(rows, offset, seq_len, from_seq_len, cu_seqlens, inverse, unscaled)


def _new_outputs(q: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor]:
    """What :func:`rotate` allocates; an operator cannot return ``None``, so no k is an empty one."""
    return torch.empty_like(q), q.new_empty(0) if k is None else torch.empty_like(k)


def _into(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    run_time: Sequence[Tensor | None], spec: str,
) -> None:  # fmt: skip
    if q.numel() == 0 and (k is None or k.numel() == 0):
        return
    call = parse_call(spec)
    layout = call.layout
    inputs = inputs_of(run_time, layout, call.inverse, call.unscaled)
    wide_q = tokens_first(q, layout)
    wide_k = None if k is None else tokens_first(k, layout)
    wide_q_out = wide_q if q_out is q else tokens_first(q_out, layout)
    wide_k_out = wide_k if k_out is k or k_out is None else tokens_first(k_out, layout)
    backend_for(q.device).rotate(wide_q, wide_k, wide_q_out, wide_k_out, inputs, parse_spec(spec))


def _rotate(
    q: Tensor, k: Tensor | None,
    positions: Tensor | None, offset: Tensor | None, seq_len: Tensor | None,
    from_seq_len: Tensor | None, cu_seqlens: Tensor | None,
    spec: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q_out, k_out = _new_outputs(q, k)
    run_time = (positions, offset, seq_len, from_seq_len, cu_seqlens)
    _into(q, k, q_out, None if k is None else k_out, run_time, spec)
    return q_out, k_out


def _rotate_(
    q: Tensor, k: Tensor | None,
    positions: Tensor | None, offset: Tensor | None, seq_len: Tensor | None,
    from_seq_len: Tensor | None, cu_seqlens: Tensor | None,
    spec: str,
) -> None:  # fmt: skip
    _into(q, k, q, k, (positions, offset, seq_len, from_seq_len, cu_seqlens), spec)


def _rotate_out(
    q: Tensor, k: Tensor | None,
    positions: Tensor | None, offset: Tensor | None, seq_len: Tensor | None,
    from_seq_len: Tensor | None, cu_seqlens: Tensor | None,
    spec: str,
    q_out: Tensor, k_out: Tensor | None,
) -> None:  # fmt: skip
    run_time = (positions, offset, seq_len, from_seq_len, cu_seqlens)
    _into(q, k, q_out, k_out, run_time, spec)


def table_rotation(head_dim: int, rotary_dim: int, pairing: str) -> Rotation:
    """The geometry of the table operator: the first ``rotary_dim`` channels turn."""
    return Rotation(head_dim, rotary_dim // 2, rotary_dim // 2, pairing=pairing)


def _rotate_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, rotary_dim: int, pairing: str, layout: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    q_out, k_out = _new_outputs(q, k)
    if q.numel() or (k is not None and k.numel()):
        backend_for(q.device).rotate_table(
            tokens_first(q, layout),
            None if k is None else tokens_first(k, layout),
            tokens_first(q_out, layout),
            None if k is None else tokens_first(k_out, layout),
            cos,
            sin,
            table_rotation(q.shape[-1], rotary_dim, pairing),
            inverse,
        )
    return q_out, k_out


def _fake_new(q: Tensor, k: Tensor | None, *rest: object) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, k)


def _fake_into(*args: object) -> None:
    return None


for _name, _implementation, _fake in (
    ("rotate", _rotate, _fake_new),
    ("rotate_", _rotate_, _fake_into),
    ("rotate_out", _rotate_out, _fake_into),
    ("rotate_table", _rotate_table, _fake_new),
):
    # The second is where the native library hands on a call whose thread asked for another backend.
    for _operator in (_name, f"python_{_name}"):
        LIBRARY.define(f"{_operator}{_SCHEMAS[_name]}", tags=_TAGS)
        LIBRARY.impl(_operator, _implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rope_kernels::{_operator}", _fake, lib=LIBRARY)
LIBRARY.define(f"native_rotate_out{_SCHEMAS['rotate_out']}")
native.load()
direct.load()

rotate = torch.ops.rope_kernels.rotate.default
rotate_ = torch.ops.rope_kernels.rotate_.default
rotate_out = torch.ops.rope_kernels.rotate_out.default
rotate_table = torch.ops.rope_kernels.rotate_table.default
