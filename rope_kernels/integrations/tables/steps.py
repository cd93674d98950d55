"""Tables in the form that the kernel reads, made once for each table: for all layers of a denoising step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.weak import WeakTensorKeyDictionary

from .conventions import Convention

__all__ = ["Prepared", "prepared"]


class Prepared(NamedTuple):
    """A table for the kernel, and where x has its tokens.

    Attributes:
        cos: (tokens, rotary_dim) or (batch, tokens, rotary_dim), in fp32.
        sin: like cos.
        sizes: of the table by the axes of x, which has four.
        insert: where x of three axes gets the fourth; -1 if it has four.
        tokens: the axis of x with its tokens; 0 if each head has a table, and heads count as tokens.
        halves: for wide heads on a CPU, (positions, cos, sin): 0, 1, ... and the table with one entry per pair.
    """

    cos: Tensor
    sin: Tensor
    sizes: tuple[int, int, int]
    insert: int
    tokens: int
    halves: tuple[Tensor, Tensor, Tensor] | None = None


WIDE = 1024
"""Heads of so many channels, such as LTX's single one, are so wide that the table is as long to read as x."""

_kept = WeakTensorKeyDictionary()


def prepared(convention: Convention, tables: Sequence[Tensor], swapped: bool) -> Prepared | None:
    """The table for the kernel; ``None`` if it varies along axes for which there is no kernel.

    Results are kept while the first tensor lives and none has changed. Not kept are those that need gradients, that a
    tracer, a transform or a CUDA graph makes, and those of inference tensors, whose changes torch does not count.

    Args:
        convention: how the table is read.
        tables: one tensor or two.
        swapped: for a table per head, whether x's second axis before the channels is the outer one in memory.
    """
    if is_compiling() or not _may_be_kept(tables):
        return _prepare(convention, tables, swapped)
    version = tuple([table._version for table in tables])
    kept: dict[Any, Any] = _kept.setdefault(tables[0], {})
    last = tables[-1]
    found = kept.get((convention, swapped))
    if found is not None and found[0] == version and found[1]() is last:
        return found[2]
    with torch.inference_mode(False), torch.no_grad():
        made = _prepare(convention, tables, swapped)
        if made is not None:
            # A kept view of the table would keep the table, too.
            made = made._replace(
                cos=_apart(made.cos, tables), sin=_apart(made.sin, tables), halves=_halves(made, convention.pairing)
            )
    kept[convention, swapped] = (version, weakref.ref(last), made)
    return made


def _halves(made: Prepared, pairing: str) -> tuple[Tensor, Tensor, Tensor] | None:
    """The table with one entry per pair, if both members have the same, and if reading the rest would take long."""
    width = made.cos.shape[-1]
    if made.cos.dim() != 2 or made.tokens == 0 or width < WIDE or width % 2 or made.cos.device.type != "cpu":
        return None
    sides = [(t[:, 0::2], t[:, 1::2]) if pairing == "interleaved" else t.chunk(2, -1) for t in (made.cos, made.sin)]
    if not all(torch.equal(first, second) for first, second in sides):
        return None
    return torch.arange(made.cos.shape[0]), sides[0][0].contiguous(), sides[1][0].contiguous()


def _apart(made: Tensor, tables: Sequence[Tensor]) -> Tensor:
    is_view = any(made.untyped_storage().data_ptr() == table.untyped_storage().data_ptr() for table in tables)
    return made.clone() if is_view else made


def _may_be_kept(tables: Sequence[Tensor]) -> bool:
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing():
        return False
    if any(type(table) is not Tensor or table.requires_grad or table.is_inference() for table in tables):
        return False
    return not (tables[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _prepare(convention: Convention, tables: Sequence[Tensor], swapped: bool) -> Prepared | None:
    cos, sin = convention.cos_sin(tables)
    axes = convention.axes
    order = sorted(range(len(axes)), key=axes.__getitem__)
    sizes = [1, 1, 1]
    for size, axis in zip(cos.shape, axes, strict=False):
        sizes[axis] = size
    cos, sin = cos.permute(*order, -1), sin.permute(*order, -1)
    insert = -1
    if convention.key[1] == 3 and not convention.splits:
        insert = 0 if sizes[1] == 1 and sizes[0] != 1 else 2
        sizes = [1, *sizes[:2]] if insert == 0 else sizes
    batch, first, second = sizes
    width = cos.shape[-1]
    if first != 1 and second != 1:
        tokens = 0
        cos, sin = cos.reshape(*sizes, width), sin.reshape(*sizes, width)
        if swapped:
            cos, sin = cos.transpose(1, 2), sin.transpose(1, 2)
        shape = [batch, first * second, width]
    elif batch != 1 and first == 1 and second == 1:
        return None
    else:
        tokens = 2 if second != 1 else 1
        shape = [batch, first * second, width]
    shape = shape[1:] if batch == 1 else shape
    cos, sin = cos.reshape(shape).contiguous(), sin.reshape(shape).contiguous()
    return Prepared(cos, sin, (batch, first, second), insert, tokens)
