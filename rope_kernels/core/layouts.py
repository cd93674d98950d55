"""The layouts of q and k and their axes. Every other Python file reads them from this table."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LAYOUTS", "Layout", "from_tokens_first", "position_axes", "tokens_first"]


class Layout(NamedTuple):
    """The axes of q and k in one layout; the last axis is always a head's channels.

    Attributes:
        batch: axis of the batch; ``None`` if sequences are packed (varlen).
        tokens: axis of the tokens.
        heads: axis of the heads.
        rank: number of dimensions.
    """

    batch: int | None
    tokens: int
    heads: int
    rank: int


LAYOUTS = {
    "bshd": Layout(batch=0, tokens=1, heads=2, rank=4),
    "bhsd": Layout(batch=0, tokens=2, heads=1, rank=4),
    "sbhd": Layout(batch=1, tokens=0, heads=2, rank=4),
    "thd": Layout(batch=None, tokens=0, heads=1, rank=3),
}
"""By name. ``csrc/core/spec.h`` has the same table."""


def tokens_first(x: Tensor, layout: str) -> Tensor:
    """The (batch, tokens, heads, head_dim) view of a tensor in ``layout``."""
    axes = LAYOUTS[layout]
    if axes.batch is None:
        return x.unsqueeze(0)
    return x if axes.tokens == 1 else x.transpose(1, axes.tokens)


def from_tokens_first(x: Tensor, layout: str) -> Tensor:
    """The inverse of :func:`tokens_first`."""
    axes = LAYOUTS[layout]
    if axes.batch is None:
        return x.squeeze(0)
    return x if axes.tokens == 1 else x.transpose(1, axes.tokens)


def position_axes(positions: Tensor | None, layout: str) -> Tensor | None:
    """The (axes, batch or 1, tokens) view of positions, in any shape that the public calls take."""
    if positions is None or positions.dim() == 3:
        return positions
    if positions.dim() == 1:
        return positions[None, None]
    return positions[:, None] if LAYOUTS[layout].batch is None else positions[None]
