"""cos_sin: an exact table of cosines and sines, for code that needs one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import RopeConfig
from ..core.pairs import pairs, unit_pairs
from ..core.rotation import Rotation
from ..errors import RopeShapeError
from . import checks
from .apply import apply_rope

__all__ = ["cos_sin"]


def cos_sin(
    positions: Tensor, cfg: RopeConfig, dtype: torch.dtype = torch.float32, *, seq_len: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """An exact cos/sin table, for code that needs one: attention scaling included, rounded once to ``dtype``.

    Args:
        positions: (seq,) or (batch, seq), or (axes, batch, seq); as in :func:`apply_rope`.
        cfg: the RoPE config.
        dtype: of the table.
        seq_len: as in :func:`apply_rope`: an int, a scalar tensor or (batch,).

    Returns:
        (cos, sin), each (seq, rotary_dim) or (batch, seq, rotary_dim). Both members of a pair have its entry, in
        transformers' order: halves for "half" and "interleaved_to_half", neighbours for "interleaved".

    Raises:
        RopeShapeError: positions do not fit the config, or ``dtype`` is not floating.
        TypeError: ``cfg`` is not a :class:`RopeConfig`.
    """
    checks.check_config(cfg, "bshd")
    checks.check_tensor("positions", positions)
    if positions.dim() == 0:
        raise RopeShapeError("positions: a scalar, must be (seq,), (batch, seq) or (axes, batch, seq)")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise RopeShapeError(f"dtype: got {dtype!r}, allowed are torch's floating ones")
    shape = tuple(positions.shape[-2:]) if positions.dim() > 1 else (1, *positions.shape)
    rotation = cfg.rotation()
    unit = unit_pairs(shape[0], shape[1], rotation, positions.device)
    rotated, _ = apply_rope(unit, None, positions, cfg, seq_len=seq_len)
    first, second = (part.flatten(3).squeeze(2) for part in pairs(rotated, rotation, written=True))
    pair_of = _pair_of_channel(rotation, positions.device)
    cos = pad(first, (0, 1), value=cfg.attention_scaling)[..., pair_of].to(dtype)
    sin = pad(second, (0, 1))[..., pair_of].to(dtype)
    return (cos, sin) if positions.dim() > 1 else (cos[0], sin[0])


def _pair_of_channel(rotation: Rotation, device: torch.device) -> Tensor:
    """int64 (rotary_dim,): the pair of each channel, or one past the last for a channel that is not rotated."""
    n, start = rotation.num_pairs, rotation.rotary_offset
    pair_of = torch.full((rotation.head_dim,), n, dtype=torch.int64, device=device)
    for member in pairs(pair_of, rotation, written=True):
        member.copy_(torch.arange(n, device=device).reshape(member.shape))
    return pair_of[start : start + 2 * rotation.distance * rotation.blocks]
