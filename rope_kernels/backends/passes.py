"""Rotates CPU tensors in a few passes over blocks that stay in the cache.

The second product is added before it is rounded, where torch has an instruction for that: so a result may differ in the
last place of float32 from that of :func:`rope_kernels.core.pairs.rotate_pairs`, which torch can differentiate.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.pairs import rotate_pairs
from ..core.rotation import Rotation
from .angles import is_watched, kept_tensors

__all__ = ["MAX_BYTES", "Table", "caller_table", "rotate", "table_of"]

BLOCK = 5 << 15
"""Elements of q and k per block and thread: with two float32 copies of them, a second-level cache of 2 MiB."""


class Table(NamedTuple):
    """The float32 factors of a rotation.

    Attributes:
        cos: what each channel is multiplied by. Interleaved pairs: (batch or 1, tokens, 1, channels); halves:
            (batch or 1, tokens, 1, 1 or 2, pairs); where :func:`rotate_pairs` rotates: (batch or 1, tokens, 1, pairs).
        sin_first: (batch or 1, tokens, 1, pairs), what the first member of a pair has of the second one, negated.
        sin_second: what the second member has of the first one.
    """

    cos: Tensor
    sin_first: Tensor
    sin_second: Tensor

    def until(self, end: int) -> Table:
        """The factors of the first ``end`` tokens."""
        return Table(*(t[:, :end] for t in self))


class _Scratch(NamedTuple):
    """Memory for the rotated channels of a block, as read and as rotated.

    Attributes:
        rotation: keeps its id from being given to another one.
        x: float32 (batch, tokens, heads of q and k, channels), the channels (2, pairs) where pairs are halves.
        read: the heads of q in ``x``, the heads of k.
        members: the first members of the pairs in ``x``, the second ones.
        y, rotated, rotated_members: likewise, of the result.
    """

    rotation: Rotation
    x: Tensor
    read: tuple[Tensor, ...]
    members: tuple[Tensor, Tensor]
    y: Tensor
    rotated: tuple[Tensor, ...]
    rotated_members: tuple[Tensor, Tensor]


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
MAX_BYTES = 1 << 20
"""Of the float32 sines of one table that is kept: at 4096 tokens of 64 pairs, making both takes a twentieth of the
rotation."""
_MANY = 1 << 15
"""Elements of q from which copying them takes longer than making views of them."""
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
        sin = sin.float().unsqueeze(2)
        return Table(cos.float().unsqueeze(2), sin, sin)
    if rotation.pairing == "interleaved":
        cos = cos.repeat_interleave(2, -1)
    sin = sin.float().unsqueeze(2)
    return Table(_of_channels(cos, rotation), sin, sin)


def _of_channels(x: Tensor, rotation: Rotation) -> Tensor:
    """float32 (batch or 1, tokens, 1, ...) of (batch or 1, tokens, pairs or channels): see :class:`Table`."""
    x = x.float()
    if rotation.pairing == "half":
        return x.reshape(*x.shape[:2], 1, x.shape[2] // rotation.num_pairs, rotation.num_pairs)
    return x.unsqueeze(2)


def caller_table(cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool) -> Table:
    """The table of a caller's (batch or 1, tokens, rotary_dim), whose entries may differ within a pair."""
    if inverse:
        second, first = _members(-sin, rotation)
        return _given_table(cos, first, second, rotation)
    last = _spare.given
    if last is not None and last[0] == rotation.pairing and _are_equal(last[1], cos) and _are_equal(last[2], sin):
        return last[3]
    with kept_tensors():
        is_kept = sin.numel() * 2 <= MAX_BYTES and not is_watched()
        if is_kept:  # apart from the caller's tensors, which may change
            cos, sin = cos.clone(), sin.clone()
        table = _given_table(cos, *_members(sin, rotation), rotation)
        if is_kept:
            _spare.given = rotation.pairing, cos, sin, table
    return table


def _given_table(cos: Tensor, sin_first: Tensor, sin_second: Tensor, rotation: Rotation) -> Table:
    return Table(_of_channels(cos, rotation), sin_first.float().unsqueeze(2), sin_second.float().unsqueeze(2))


def _are_equal(x: Tensor, y: Tensor) -> bool:
    return x.dtype is y.dtype and torch.equal(x, y)


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
        for x, out, (cos, *sin) in _blocks(inputs, outputs, table):
            for given, written in zip(x, out, strict=True):
                written.copy_(rotate_pairs(given, (cos, cos), (sin[0], sin[1]), rotation, inverse))


def _rotate_dense(
    inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], table: Table, rotation: Rotation, form: tuple[object, ...]
) -> None:
    """``form``: where :func:`rotate` finds the scratch of one block that is the whole call."""
    whole = inputs
    if 2 * rotation.num_pairs != rotation.head_dim:
        inputs, outputs = _rotated_channels(inputs, outputs, rotation)
    if inputs[0].dtype is torch.float32 and inputs[0].numel() >= _MANY and _are_apart(inputs, outputs):
        for x, out, factors in _blocks(inputs, outputs, table):
            for given, written in zip(x, out, strict=True):
                _rotate_float32(given, written, factors, rotation)
        return
    for x, out, factors in _blocks(inputs, outputs, table):
        of_block = form if x is whole else (rotation.pairing, *[t.shape for t in x])
        scratch = _spare.scratches.pop(of_block, None) or _scratch(x, rotation)
        _rotate_block(x, out, factors, scratch)
        _keep(of_block, scratch)


def _are_apart(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> bool:
    return all(x.data_ptr() != out.data_ptr() for x, out in zip(inputs, outputs, strict=True))


def _rotate_float32(x: Tensor, out: Tensor, table: Table, rotation: Rotation) -> None:
    """Rotate without a scratch, where ``x`` is float32 and stays as it is."""
    torch.mul(_channels(x, rotation), table.cos, out=_channels(out, rotation))
    first, second = _members(x, rotation)
    out_first, out_second = _members(out, rotation)
    out_first.addcmul_(second, table.sin_first, value=-1)
    out_second.addcmul_(first, table.sin_second)


def _channels(x: Tensor, rotation: Rotation) -> Tensor:
    """``x`` as :attr:`Table.cos` multiplies it."""
    return x.view(*x.shape[:-1], 2, rotation.num_pairs) if rotation.pairing == "half" else x


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
    parts: dict[int, Sequence[Tensor]] = {}
    for t in tensors:
        if id(t) not in parts:  # a call in place has its inputs twice, most tables their sines
            parts[id(t)] = t.split_with_sizes(sizes, dim) if t.shape[dim] == total else [t] * len(sizes)
    yield from zip(*[parts[id(t)] for t in tensors], strict=True)


def _scratch(inputs: tuple[Tensor, ...], rotation: Rotation) -> _Scratch:
    batch, tokens, _, width = inputs[0].shape
    heads = [x.shape[2] for x in inputs]
    with kept_tensors():
        x = torch.empty((batch, tokens, sum(heads), width), dtype=torch.float32, device="cpu")
        y = torch.empty_like(x)
        read, rotated = (t.split_with_sizes(heads, 2) for t in (x, y))
        members, rotated_members = _members(x, rotation), _members(y, rotation)
        x, y = (_channels(t, rotation) for t in (x, y))
        return _Scratch(rotation, x, read, members, y, rotated, rotated_members)


def _members(x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Views of the first and the second members of the pairs of rotated channels."""
    n = rotation.num_pairs
    halves = x.split_with_sizes((n, n), -1) if rotation.pairing == "half" else x.unflatten(-1, (n, 2)).unbind(-1)
    return halves[0], halves[1]


def _rotate_block(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], table: Table, scratch: _Scratch) -> None:
    _, x, read, (first, second), y, rotated, (y_first, y_second) = scratch
    for i, given in enumerate(inputs):
        read[i].copy_(given)
    torch.mul(x, table.cos, out=y)
    y_first.addcmul_(second, table.sin_first, value=-1)
    y_second.addcmul_(first, table.sin_second)
    for i, out in enumerate(outputs):
        out.copy_(rotated[i])
