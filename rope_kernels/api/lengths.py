"""The length of a call's longest sequence, which chooses the frequencies of longrope and dynamic."""

from __future__ import annotations

import torch
from torch import Tensor

from .sizes import is_known, is_possible

__all__ = ["length_of", "longest"]


def length_of(positions: Tensor) -> Tensor:
    """max(position) + 1 as an int64 scalar on the device; ``positions`` must not be empty."""
    last = positions.amax()
    return (last.ceil() if last.is_floating_point() else last).to(torch.int64) + 1


def longest(
    positions: Tensor | None, offset: Tensor | None, cu_seqlens: Tensor | None, q: Tensor, tokens: int
) -> Tensor:
    """max(position) + 1 over the call as an int64 (1,) on the device; 0 without tokens."""
    if positions is not None:
        if is_known(positions.numel() == 0):
            return torch.zeros(1, dtype=torch.int64, device=q.device)
        if is_possible(positions.numel() == 0):
            # Without a token the length is 0, whatever the frequencies of negative positions.
            positions = torch.cat((positions.reshape(-1), positions.new_full((1,), -1)))
        return length_of(positions).reshape(1)
    if cu_seqlens is None:
        length = torch.full((1,), tokens, dtype=torch.int64, device=q.device)
        return length if offset is None else (length + offset).amax().reshape(1)
    lengths = cu_seqlens.diff().to(torch.int64)
    if offset is not None:
        lengths = torch.where(lengths > 0, lengths + offset, 0)
    return lengths.amax().reshape(1)
