"""Replacements for functions that rotate by a table: the table kernel, for one or two tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...api.cached import apply_rope_cached_
from ...api.table import apply_rotary_pos_emb
from ...core.names import LayoutName
from .conventions import Convention, Key, Signature, structure_of
from .steps import Prepared, prepared

__all__ = ["by_table", "replacement"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def replacement(
    original: Callable[..., Any], signature: Signature, conventions: Mapping[Key, Convention]
) -> Callable[..., Any]:
    """A function that replaces ``original``, and still calls it for calls that the kernels cannot do."""

    def rotated(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(signature.names) or not all(name in signature.names for name in kwargs):
            return original(*args, **kwargs)  # an error of its own
        values = dict(zip(signature.names, args, strict=False))
        values.update(kwargs)
        tensors = [values.get(name) for name in signature.rotated]
        found = structure_of([values.get(name) for name in signature.tables])
        options = signature.options_of(values)
        made = None
        if found is not None and options is not None and isinstance(tensors[0], Tensor):
            structure, tables = found
            convention = conventions.get((options, tensors[0].dim(), structure, tables[0].dim()))
            made = None if convention is None else by_table(convention, tensors, tables)
        if made is None:
            return original(*args, **kwargs)
        return made[0] if len(made) == 1 else made

    return functools.wraps(original, updated=())(rotated)


def by_table(convention: Convention, tensors: Sequence[Any], tables: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """Rotate with the table kernel; ``None`` if it cannot take the tensors or the table."""
    if convention.promotes and all(isinstance(x, Tensor) for x in tensors):
        tensors = [x.to(torch.promote_types(x.dtype, tables[0].dtype)) for x in tensors]
    first = tensors[0]
    for x in tensors:
        fits = isinstance(x, Tensor) and x.dtype == first.dtype and x.device == first.device
        if not fits or x.dim() != convention.key[1] or x.dtype not in _FLOATS:
            return None
    if any(table.device != first.device for table in tables):
        return None
    if convention.kind == "matrix" and tables[0].shape[-2:] != (2, 2):
        return None
    heads = tables[0].shape[1] if convention.splits else 0
    if heads and any(x.shape[-1] % heads for x in tensors):
        return None
    views = [_view(convention, x, heads) for x in tensors]
    per_head = views[0].dim() == 4
    swapped = per_head and views[0].stride(1) < views[0].stride(2)
    table = prepared(convention, tables, swapped)
    if table is None:
        return None
    if table.insert >= 0:
        views = [x.unsqueeze(table.insert) for x in views]
    if not all(_fits(x, table) for x in views):
        return None
    results = _rotated(views, table, convention.pairing, swapped)
    return tuple([_as(convention, y, x, table.insert) for x, y in zip(tensors, results, strict=True)])


def _view(convention: Convention, x: Tensor, heads: int) -> Tensor:
    """x with the channels of a head last, and next to each other in memory."""
    if heads:
        x = x.unflatten(-1, (heads, -1))
    elif convention.channels != -1:
        x = x.transpose(convention.channels, -1)
    return x if x.stride(-1) == 1 else x.contiguous()


def _as(convention: Convention, y: Tensor, x: Tensor, insert: int) -> Tensor:
    """A result in the shape, the order and the dtype that the original function returns."""
    if insert >= 0:
        y = y.squeeze(insert)
    if convention.channels != -1:
        y = y.transpose(convention.channels, -1)
    y = y.reshape(x.shape) if convention.splits else y
    return y if convention.dtype is None else y.to(convention.dtype)


def _fits(x: Tensor, table: Prepared) -> bool:
    batch, first, second = table.sizes
    width = table.cos.shape[-1]
    if (batch not in (1, x.shape[0])) or width > x.shape[-1] or width % 2 or not width:
        return False
    if table.tokens == 0:
        return (first, second) == (x.shape[1], x.shape[2])
    return bool(x.shape[table.tokens] == (first if table.tokens == 1 else second))


def _rotated(views: Sequence[Tensor], table: Prepared, pairing: str, swapped: bool) -> list[Tensor]:
    """Rotate tensors of four axes: in one call if their shapes allow it."""
    if table.halves is not None and not (torch.is_grad_enabled() and any(x.requires_grad for x in views)):
        return [_by_halves(x, table.halves, table.tokens, pairing) for x in views]
    cos, sin, axis = table.cos, table.sin, table.tokens
    where = (2 if axis != 2 else 1) - (cos.dim() == 2)
    flat = views
    if axis == 0:
        flat = [(x.transpose(1, 2) if swapped else x).flatten(1, 2).unsqueeze(2) for x in views]
    together = len(flat) == 2 and flat[0].shape[0] == flat[1].shape[0] and flat[0].shape[-1] == flat[1].shape[-1]
    made: list[Any] = []
    for q, k in [(flat[0], flat[1])] if together else [(x, None) for x in flat]:
        rotated = apply_rotary_pos_emb(q, k, cos, sin, where, table_width="full", pairing=pairing)  # type: ignore[arg-type]
        made += rotated if k is not None else rotated[:1]
    if axis != 0:
        return made
    sizes = [(x.shape[2], x.shape[1]) if swapped else (x.shape[1], x.shape[2]) for x in views]
    apart = [y.squeeze(2).unflatten(1, size) for y, size in zip(made, sizes, strict=True)]
    return [y.transpose(1, 2) for y in apart] if swapped else apart


def _by_halves(x: Tensor, halves: tuple[Tensor, Tensor, Tensor], axis: int, pairing: str) -> Tensor:
    """Rotate by a table with one entry per pair: the call of serving engines, at positions 0, 1, ..."""
    positions, cos, sin = halves
    out = torch.empty_like(x)
    layout: LayoutName = "bshd" if axis == 1 else "bhsd"
    by_pairs = pairing == "interleaved"
    apply_rope_cached_(x, None, positions, (cos, sin), interleaved=by_pairs, layout=layout, out=(out, None))
    return out
