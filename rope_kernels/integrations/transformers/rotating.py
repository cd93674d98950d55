"""Replacements for apply functions: rotate with our kernels, by angles computed there or by a table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...api.apply import apply_rope
from ...api.table import apply_rotary_pos_emb
from ...core.names import LayoutName
from .angles import Angles
from .conventions import Convention, Signature
from .norms import CallNorms, norms_of

__all__ = ["by_angles", "by_table", "replacement"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_TOKEN_AXIS = {"bshd": 1, "bhsd": 2, "thd": 0}

Pair = tuple[Tensor, Tensor | None]


def replacement(original: Callable[..., Any], convention: Convention) -> Callable[..., Any]:
    """A function that replaces ``original``, and still calls it for calls that the kernels cannot do."""
    signature = convention.signature

    def rotated(*args: Any, **kwargs: Any) -> Any:
        values = dict(zip(signature.names, args, strict=False))
        values.update(kwargs)
        insert = values.get("unsqueeze_dim", signature.insert)
        tensors = [values.get(name) for name in signature.rotated]
        tables = [values.get(name) for name in signature.tables]
        usual = all(values.get(name, default) is default for name, default in signature.defaults)
        known = all(name in signature.names for name in kwargs)
        norms = norms_of(tables)
        made = _rotated(convention, tensors, tables, insert, norms) if usual and known else None
        if made is None and norms is not None:
            return _norm_and_rotate(rotated, signature, norms, args, kwargs)
        if made is None:
            return original(*args, **kwargs)
        return made[0] if len(tensors) == 1 else made

    return functools.wraps(original, updated=())(rotated)


def _norm_and_rotate(
    rotated: Callable[..., Any], signature: Signature, norms: CallNorms, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the norm modules and ``rotated`` one after the other: for calls that the fused kernel cannot do."""
    if len(signature.rotated) != 2:
        raise RuntimeError("a module with fused norms rotates q and k one by one; keep its norms (fuse_norms=False)")
    values = dict(zip(signature.names, args, strict=False)) | kwargs
    values = {name: v.with_norms(None) if isinstance(v, Angles) else v for name, v in values.items()}
    pair = norms.apart([values[name] for name in signature.rotated], after_rope=False)
    values.update(zip(signature.rotated, pair, strict=True))
    names = signature.names[: len(args)]
    result = rotated(*(values[name] for name in names), **{name: values[name] for name in kwargs})
    return norms.apart(result, after_rope=True)


def _rotated(
    convention: Convention, tensors: list[Any], tables: list[Any], insert: Any, norms: CallNorms | None
) -> Pair | None:
    if not _fit(tensors):
        return None
    q, k = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors] + [None] * (2 - len(tensors))
    if all(isinstance(table, Angles) for table in tables):
        made = by_angles(convention, q, k, tables, insert, norms)
        if made is not None or norms is not None:
            return made
    tables = [table.tensor() if isinstance(table, Angles) else table for table in tables]
    if not all(isinstance(table, Tensor) and table.device == q.device for table in tables):
        return None
    return by_table(convention, q, k, tables, insert)


def _fit(tensors: list[Any]) -> bool:
    """Whether the kernels accept these tensors as q and k."""
    if not all(isinstance(x, Tensor) and x.dtype in _FLOATS for x in tensors):
        return False
    first = tensors[0]
    return all(
        x.dtype == first.dtype
        and x.device == first.device
        and x.dim() == first.dim()
        and x.shape[-1] == first.shape[-1]
        for x in tensors[1:]
    )


def by_angles(
    convention: Convention,
    q: Tensor,
    k: Tensor | None,
    tables: list[Angles],
    insert: int | None,
    norms: CallNorms | None = None,
) -> Pair | None:
    """Rotate, and norm, with the angles computed in the kernel; ``None`` if that would be something else."""
    first, last = tables[0], tables[-1]
    parts = [table.part for table in tables]
    inputs = first.inputs
    source = inputs.source
    if first.inputs is not last.inputs or first.negated or parts not in (["cos", "sin"], ["complex"]):
        return None
    layout = _layout(convention, q, k, inputs.lead, insert)
    cfg = source.fitted(q.shape[-1], convention.pairing, convention.trailing)
    if layout is None or cfg is None or not convention.reads(source.form):
        return None
    positions = inputs.positions
    if positions.shape[-1] != q.shape[_TOKEN_AXIS[layout]]:
        return None
    if layout == "thd":
        positions = positions[..., 0, :]
    seq_len = inputs.seq_len if cfg.depends_on_length else None
    inverse = convention.inverse != last.negated
    if norms is None:
        return apply_rope(q, k, positions, cfg, layout=layout, seq_len=seq_len, inverse=inverse)
    fused = None if inverse else norms.fused_with(q, k)
    if fused is None:
        return None
    return apply_rope(q, k, positions, cfg, layout=layout, seq_len=seq_len, q_norm=fused[0], k_norm=fused[1])


def by_table(
    convention: Convention, q: Tensor, k: Tensor | None, tables: list[Tensor], insert: int | None
) -> Pair | None:
    """Rotate by a table with the table kernel; ``None`` if the kernel cannot take the table."""
    cos, sin = (tables[0].real, tables[0].imag) if convention.columns == "complex" else tables
    if convention.reshapes:
        cos, sin = cos.flatten(0, -2), sin.flatten(0, -2)
    layout = _layout(convention, q, k, tuple(cos.shape[:-1]), insert)
    if layout is None or cos.shape != sin.shape or cos.dtype != sin.dtype:
        return None
    sin = -sin if convention.inverse else sin
    cos, sin = _per_channel(convention, cos), _per_channel(convention, sin)
    channels, tokens = q.shape[-1] - cos.shape[-1], q.shape[_TOKEN_AXIS[layout]] - cos.shape[-2]
    to_half = convention.pairing == "interleaved_to_half"
    if channels < 0 or tokens < 0 or (tokens and not convention.prefix) or (channels and to_half):
        return None
    before = (channels if convention.trailing else 0, 0, tokens, 0)
    if any(before):
        # channels and tokens that stay unchanged are rotated by 0
        cos, sin = pad(cos, before, value=1.0), pad(sin, before)
    if layout == "thd" and cos.dim() == 3:
        cos, sin = cos[0], sin[0]
    if to_half:
        q, k = _neighbours_apart(q), None if k is None else _neighbours_apart(k)
    where = 2 if layout == "bshd" else 1
    if cos.dim() == 2 and layout != "thd":
        cos, sin = cos[None], sin[None]
    interleaved = convention.pairing == "interleaved"
    return apply_rotary_pos_emb(q, k, cos, sin, where, interleaved=interleaved, table_width="full")


def _layout(
    convention: Convention, q: Tensor, k: Tensor | None, lead: tuple[int, ...], insert: int | None
) -> LayoutName | None:
    """The layout of q and k for tables with these leading dimensions; ``None`` if the kernels have no such layout."""
    tokens_first = convention.tokens_are_first(insert, len(lead) + 1)
    if tokens_first is None or len(lead) not in (1, 2):
        return None
    batch = lead[0] if len(lead) == 2 else 1
    layout: LayoutName | None
    if q.dim() == 3:
        layout = "thd" if tokens_first and batch == 1 and len(lead) == 1 else None
    else:
        # Without a dimension inserted for the heads, the table's batch would be broadcast over them.
        is_aligned = insert is not None or tokens_first or convention.batched or batch == 1
        fits = q.dim() == 4 and is_aligned and batch in (1, q.shape[0])
        layout = ("bshd" if tokens_first else "bhsd") if fits else None
    if layout is None or k is None:
        return layout
    axis = _TOKEN_AXIS[layout]
    same = q.shape[axis] == k.shape[axis] and (layout == "thd" or q.shape[0] == k.shape[0])
    return layout if same else None


def _per_channel(convention: Convention, table: Tensor) -> Tensor:
    """The table with an entry per channel."""
    if convention.columns == "full":
        return table
    if convention.columns == "first_half":
        table = table[..., : table.shape[-1] // 2]
    return table.repeat_interleave(2, dim=-1) if convention.pairing == "interleaved" else torch.cat((table, table), -1)


def _neighbours_apart(x: Tensor) -> Tensor:
    """Reorder channels to 0, 2, 4, ..., 1, 3, 5, ...: neighbours become halves."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
