"""Which channels are the two members of a pair, and the rotation of pairs in plain torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .rotation import Rotation

__all__ = ["join_pairs", "pairs", "rotate_pairs", "unit_pairs"]


def pairs(x: Tensor, rotation: Rotation, written: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and the second members of the pairs: (..., pairs), or (..., blocks, pairs / blocks).

    ``written`` selects the channels that a rotation writes instead of those it reads; they differ only for
    ``interleaved_to_half``.
    """
    n, first = rotation.num_pairs, rotation.rotary_offset
    if _is_interleaved(rotation, written):
        inner = x[..., first : first + 2 * n].unflatten(-1, (n, 2))
        return inner[..., 0], inner[..., 1]
    if rotation.blocks == 1:
        return x[..., first : first + n], x[..., first + rotation.distance : first + rotation.distance + n]
    inner = x[..., first : first + 2 * n].unflatten(-1, (rotation.blocks, 2, n // rotation.blocks))
    return inner[..., 0, :], inner[..., 1, :]


def unit_pairs(batch: int, tokens: int, rotation: Rotation, device: torch.device) -> Tensor:
    """float32 (batch, tokens, 1, head_dim) whose pairs are all (1, 0), which a rotation maps to (cos, sin)."""
    unit = torch.zeros((batch, tokens, 1, rotation.head_dim), dtype=torch.float32, device=device)
    pairs(unit, rotation, written=False)[0].fill_(1.0)
    return unit


def _is_interleaved(rotation: Rotation, written: bool) -> bool:
    return rotation.pairing == "interleaved" or (rotation.pairing == "interleaved_to_half" and not written)


def rotate_pairs(
    x: Tensor, cos: tuple[Tensor, Tensor], sin: tuple[Tensor, Tensor], rotation: Rotation, inverse: bool
) -> Tensor:
    """``x`` rotated. ``cos`` and ``sin`` have one entry for the first member of each pair, one for the second."""
    first, second = (part.float() for part in pairs(x, rotation, written=inverse))
    if rotation.blocks > 1:
        cos, sin = ((t[0].unflatten(-1, first.shape[-2:]), t[1].unflatten(-1, first.shape[-2:])) for t in (cos, sin))
    y1 = (first * cos[0] - second * sin[0]).to(x.dtype)
    y2 = (second * cos[1] + first * sin[1]).to(x.dtype)
    n, start, gap = rotation.num_pairs, rotation.rotary_offset, rotation.distance
    if _is_interleaved(rotation, written=not inverse):
        inner, end = [torch.stack((y1, y2), -1).flatten(-2)], start + 2 * n
    elif rotation.blocks > 1:
        inner, end = [torch.cat((y1, y2), -1).flatten(-2)], start + 2 * n
    else:
        inner, end = [y1, x[..., start + n : start + gap], y2], start + gap + n
    return torch.cat((x[..., :start], *inner, x[..., end:]), -1)


def join_pairs(first: Tensor, second: Tensor, rotation: Rotation) -> Tensor:
    """A (..., rotary_dim) table from the entries of the first and second members, in the order a rotation writes."""
    if _is_interleaved(rotation, written=True):
        return torch.stack((first, second), -1).flatten(-2)
    return torch.cat((first, second), -1)
