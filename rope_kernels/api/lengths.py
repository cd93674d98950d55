"""How long the longest sequence of a call is: what longrope and dynamic choose by."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["length_of", "longest"]


def length_of(positions: Tensor) -> Tensor:
    """max(position) + 1 as an int64 scalar on the device; there must be positions."""
    return positions.amax().ceil().to(torch.int64) + 1


def longest(
    positions: Tensor | None, offset: Tensor | None, cu_seqlens: Tensor | None, q: Tensor, tokens: int
) -> Tensor:
    """max(position) + 1 over the call as an int64 (1,) on the device; 0 where there are no tokens."""
    if positions is not None:
        if positions.numel() == 0:
            return torch.zeros(1, dtype=torch.int64, device=q.device)
        return length_of(positions).reshape(1)
    if cu_seqlens is None:
        length = torch.full((1,), tokens, dtype=torch.int64, device=q.device)
        return length if offset is None else (length + offset).amax().reshape(1)
    lengths = cu_seqlens.diff().to(torch.int64)
    if offset is not None:
        lengths = torch.where(lengths > 0, lengths + offset, 0)
    return lengths.amax().reshape(1)
