"""The reference for errors in demo, check and bench: integer phases, then double precision.

It shares no arithmetic with the kernels. It is slow: a Python integer operation per token and frequency.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RopeConfig

__all__ = ["angles", "rotate"]

_BITS = 256


def _pi() -> int:
    """Pi times ``2 ** _BITS``, by Machin's formula."""
    guard = 32
    one = 1 << (_BITS + guard)

    def arctan_of_inverse(n: int) -> int:
        term, total, k = one // n, one // n, 1
        while term:
            term //= -n * n
            k += 2
            total += term // k
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> guard


_TWO_PI = 2 * _pi()


def angles(inv_freq: Sequence[float], positions: Sequence[int]) -> Tensor:
    """``position * inv_freq`` modulo one turn, exactly, then rounded: float64 (positions, frequencies)."""
    scaled = [(numerator << _BITS) // denominator for numerator, denominator in map(float.as_integer_ratio, inv_freq)]
    one = 1 << _BITS
    rows = [[p * f % _TWO_PI / one for f in scaled] for p in positions]
    return torch.tensor(rows, dtype=torch.float64)


def rotate(x: Tensor, positions: Tensor, cfg: RopeConfig, length: int | None = None) -> Tensor:
    """Rotate ``x`` (batch, tokens, heads, head_dim) in float64.

    Args:
        x: any floating dtype.
        positions: integers (batch, tokens), or (axes, batch, tokens).
        cfg: the RoPE config.
        length: in tokens, the length that chooses the frequencies; ``None`` is max(position) + 1.
    """
    rotation = cfg.rotation()
    length = int(positions.max()) + 1 if length is None else length
    rows = positions if positions.dim() == 3 else positions[None]
    frequencies = cfg.inv_freq(length)[: rotation.num_pairs].tolist()
    axes = (rotation.axis or (0,) * rotation.num_pairs) if len(rows) > 1 else (0,) * rotation.num_pairs
    angle = torch.empty((rows[0].numel(), rotation.num_pairs), dtype=torch.float64)
    for axis in set(axes):
        pairs = [i for i, a in enumerate(axes) if a == axis]
        angle[:, pairs] = angles([frequencies[i] for i in pairs], rows[axis].flatten().tolist())
    angle = angle.reshape(*rows.shape[1:], 1, rotation.num_pairs)
    scaling = cfg.frequency_params.scaling(length)
    read, written = _channels(cfg, written=False), _channels(cfg, written=True)
    x = x.double().cpu()
    first, second = x[..., read[0]], x[..., read[1]]
    cos, sin = angle.cos() * scaling, angle.sin() * scaling
    y = x.clone()
    y[..., written[0]] = first * cos - second * sin
    y[..., written[1]] = second * cos + first * sin
    return y


def _channels(cfg: RopeConfig, written: bool) -> tuple[list[int], list[int]]:
    """The channels of the first and of the second members of all pairs."""
    rotation = cfg.rotation()
    start, pairs = rotation.rotary_offset, range(rotation.num_pairs)
    if rotation.pairing == "interleaved" or (rotation.pairing == "interleaved_to_half" and not written):
        return [start + 2 * i for i in pairs], [start + 2 * i + 1 for i in pairs]
    block = rotation.num_pairs // rotation.blocks
    first = [start + 2 * rotation.distance * (i // block) + i % block for i in pairs]
    return first, [channel + rotation.distance for channel in first]
