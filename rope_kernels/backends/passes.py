"""Rotates CPU tensors in a few passes over blocks that stay in the cache.

The results have the bits of :func:`rope_kernels.core.pairs.rotate_pairs`, which makes more passes over whole tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.pairs import rotate_pairs
from ..core.rotation import Rotation
from .angles import is_watched, kept_tensors

__all__ = ["MAX_BYTES", "Table", "caller_table", "rotate", "table_of"]

BLOCK = 5 << 14
"""Elements of q and k per block and thread: with two float32 copies of them, half of a second-level cache."""


class Table(NamedTuple):
    """The factors of a rotation, (batch or 1, tokens, 1, channels), in float32 or a caller's dtype.

    Where :func:`rotate_pairs` rotates, they are (batch or 1, tokens, 1, pairs).

    Attributes:
        cos: of each channel.
        sin: what each channel is multiplied by before it is added to the other member of its pair, or subtracted from
            it if that is the first one.
    """

    cos: Tensor
    sin: Tensor

    def until(self, end: int) -> Table:
        """The factors of the first ``end`` tokens."""
        return Table(self.cos[:, :end], self.sin[:, :end])


class _Scratch(NamedTuple):
    """Memory for the rotated channels of a block, and for their products with sines.

    Attributes:
        rotation: keeps its id from being given to another one.
        x: float32 (batch, tokens, heads of q and k, channels).
        parts: the heads of q, the heads of k.
        members: the first members of the pairs, the second ones.
        product: like ``x``.
        products: the members of the product.
    """

    rotation: Rotation
    x: Tensor
    parts: tuple[Tensor, ...]
    members: tuple[Tensor, Tensor]
    product: Tensor
    products: tuple[Tensor, Tensor]


class _Spare(threading.local):
    """What this thread's last calls made, and which takes as long to make as to rotate a token.

    Attributes:
        scratches: by form.
        given: a pairing, a caller's cosines and sines, and the table made of them; a model's layers share them.
    """

    def __init__(self) -> None:
        self.scratches: dict[tuple[object, ...], _Scratch] = {}
        self.given: tuple[str, Tensor, Tensor, Table] | None = None


_spare = _Spare()
MAX_BYTES = 2 << 20
"""Of the cosines that are kept, and of the sines: at 4096 tokens of 64 pairs, making both takes a twentieth of the
rotation."""
_SPARES = 4
"""A whole call, its last block, and the same for another pairing."""


def _is_dense(rotation: Rotation) -> bool:
    """Whether the rotated channels are one range, read and written in one order."""
    if rotation.pairing == "half":
        return rotation.blocks == 1 and rotation.distance == rotation.num_pairs
    return rotation.pairing == "interleaved"


def table_of(cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool) -> Table:
    """The float32 table of (batch or 1, tokens, pairs) cosines and sines of any dtype."""
    sin = -sin if inverse else sin
    if not _is_dense(rotation):
        return Table(cos.float().unsqueeze(2), sin.float().unsqueeze(2))
    if rotation.pairing == "interleaved":
        cos, sin = (t.float().repeat_interleave(2, -1) for t in (cos, sin))
        return Table(cos.unsqueeze(2), sin.unsqueeze(2))
    n = rotation.num_pairs
    cos, sin = torch.cat((cos, cos, sin, sin), -1).float().unsqueeze(2).split_with_sizes((2 * n, 2 * n), -1)
    return Table(cos, sin)


def caller_table(cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool) -> Table:
    """The table of a caller's (batch or 1, tokens, rotary_dim), whose entries may differ within a pair."""
    if inverse:
        return Table(cos.unsqueeze(2), -sin.unsqueeze(2))
    last = _spare.given
    if last is not None and last[0] == rotation.pairing and _are_equal(last[1], cos) and _are_equal(last[2], sin):
        return last[3]
    with kept_tensors():
        is_kept = cos.numel() * 4 <= MAX_BYTES and not is_watched()
        if is_kept:  # apart from the caller's tensors, which may change
            cos, sin = cos.clone(), sin.clone()
        # In float32 now: each product with a table of another dtype would convert it anew.
        table = Table(cos.float().unsqueeze(2), _swapped(sin, rotation).float().unsqueeze(2))
        if is_kept:
            _spare.given = rotation.pairing, cos, sin, table
    return table


def _are_equal(x: Tensor, y: Tensor) -> bool:
    return x.dtype is y.dtype and torch.equal(x, y)


def _swapped(sin: Tensor, rotation: Rotation) -> Tensor:
    """(batch or 1, tokens, channels): each member of a pair has the sine of the other one."""
    first, second = _members(sin, rotation)
    if rotation.pairing == "half":
        return torch.cat((second, first), -1)
    return torch.stack((second, first), -1).flatten(-2)


def rotate(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, table: Table, rotation: Rotation, inverse: bool
) -> None:
    """Rotate (batch, tokens, heads, head_dim) views, none empty, into the outputs, which may be the same."""
    inputs: tuple[Tensor, ...] = (q,) if k is None else (q, k)
    outputs: tuple[Tensor, ...] = (q_out,) if k_out is None else (q_out, k_out)
    form = id(rotation), q.shape, None if k is None else k.shape
    # A scratch is taken out while it is in use: a signal handler may rotate in the middle of this.
    scratch = _spare.scratches.pop(form, None)
    if scratch is not None:
        _rotate_block(inputs, outputs, table, scratch)
        _spare.scratches[form] = scratch
    elif _is_dense(rotation):
        _rotate_dense(inputs, outputs, table, rotation, form)
    else:
        for x, out, (cos, sin) in _blocks(inputs, outputs, table):
            for given, written in zip(x, out, strict=True):
                written.copy_(rotate_pairs(given, (cos, cos), (sin, sin), rotation, inverse))


def _rotate_dense(
    inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], table: Table, rotation: Rotation, form: tuple[object, ...]
) -> None:
    """``form``: where :func:`rotate` finds the scratch of one block that is the whole call."""
    whole = inputs
    if 2 * rotation.num_pairs != rotation.head_dim:
        inputs, outputs = _rotated_channels(inputs, outputs, rotation)
    for x, out, factors in _blocks(inputs, outputs, table):
        of_block = form if x is whole else (rotation.pairing, *[t.shape for t in x])
        scratch = _spare.scratches.pop(of_block, None) or _scratch(x, rotation)
        _rotate_block(x, out, factors, scratch)
        _keep(of_block, scratch)


def _keep(form: tuple[object, ...], scratch: _Scratch) -> None:
    if is_watched():
        return
    kept = _spare.scratches
    if len(kept) >= _SPARES:
        del kept[next(iter(kept))]
    kept[form] = scratch


def _rotated_channels(
    inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], rotation: Rotation
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The rotated channels of both, after the other channels have been copied."""
    start, width = rotation.rotary_offset, 2 * rotation.num_pairs
    end = rotation.head_dim - start - width
    for x, out in zip(inputs, outputs, strict=True):
        if out is not x:
            for first, size in ((0, start), (start + width, end)):
                out.narrow(-1, first, size).copy_(x.narrow(-1, first, size))
    narrowed = [tuple(x.narrow(-1, start, width) for x in part) for part in (inputs, outputs)]
    return narrowed[0], narrowed[1]


def _blocks(
    inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], table: Table
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Table]]:
    """Inputs, outputs and factors of blocks of at most :data:`BLOCK` elements per thread."""
    row = sum(x.shape[2] * x.shape[3] for x in inputs)
    rows, count = max(1, BLOCK * torch.get_num_threads() // row), len(inputs)
    if inputs[0].shape[0] * inputs[0].shape[1] <= rows:
        yield inputs, outputs, table
        return
    for tensors in _split((*inputs, *outputs, *table), rows):
        yield tensors[:count], tensors[count : 2 * count], Table(*tensors[2 * count :])


def _split(tensors: tuple[Tensor, ...], rows: int) -> Iterator[tuple[Tensor, ...]]:
    """The tensors (batch or 1, tokens, ...) in blocks of at most ``rows`` tokens of any sequence."""
    batch, tokens = tensors[0].shape[:2]
    if batch > 1 and tokens > rows:
        for i in range(batch):
            yield from _split(tuple(t if t.shape[0] == 1 else t.narrow(0, i, 1) for t in tensors), rows)
        return
    dim, total, most = (1, tokens, rows) if batch == 1 else (0, batch, rows // tokens)
    size = -(-total // -(-total // most))
    sizes = [min(size, total - start) for start in range(0, total, size)]
    parts = [t.split_with_sizes(sizes, dim) if t.shape[dim] == total else repeat(t, len(sizes)) for t in tensors]
    yield from zip(*parts, strict=True)


def _scratch(inputs: tuple[Tensor, ...], rotation: Rotation) -> _Scratch:
    batch, tokens, _, width = inputs[0].shape
    heads = [x.shape[2] for x in inputs]
    with kept_tensors():
        x = torch.empty((batch, tokens, sum(heads), width), dtype=torch.float32, device="cpu")
        product = torch.empty_like(x)
        members, products = _members(x, rotation), _members(product, rotation)
        return _Scratch(rotation, x, x.split_with_sizes(heads, 2), members, product, products)


def _members(x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Views of the first and the second members of the pairs of rotated channels."""
    n = rotation.num_pairs
    halves = x.split_with_sizes((n, n), -1) if rotation.pairing == "half" else x.unflatten(-1, (n, 2)).unbind(-1)
    return halves[0], halves[1]


def _rotate_block(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], table: Table, scratch: _Scratch) -> None:
    _, x, parts, (first, second), product, (of_first, of_second) = scratch
    cos, sin = table
    for i, given in enumerate(inputs):
        parts[i].copy_(given)
    torch.mul(x, sin, out=product)
    x.mul_(cos)
    first.sub_(of_second)
    second.add_(of_first)
    for i, out in enumerate(outputs):
        out.copy_(parts[i])
