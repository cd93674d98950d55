"""The exact table of cosines and sines, for callers who need one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.pairs import pairs, unit_pairs
from ..errors import RopeShapeError
from . import checks
from .apply import apply_rope

__all__ = ["cos_sin"]


def cos_sin(
    positions: Tensor, cfg: RopeConfig, dtype: torch.dtype = torch.float32, *, seq_len: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The table, exactly, for who needs one: attention scaling included, rounded once to ``dtype``.

    Args:
        positions: (seq,) or (batch, seq), or (axes, batch, seq); as in :func:`apply_rope`.
        cfg: what to rotate by.
        dtype: of the table.
        seq_len: as in :func:`apply_rope`: an int, a scalar tensor or (batch,).

    Returns:
        (cos, sin), each (seq, rotary_dim) or (batch, seq, rotary_dim), a pair's entry at both of its members, as
        transformers lays them out: halves for "half" and "interleaved_to_half", neighbours for "interleaved".

    Raises:
        RopeShapeError: positions do not fit the config, or ``dtype`` is no floating one.
        TypeError: ``cfg`` is no :class:`RopeConfig`.
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
    turned, _ = apply_rope(unit, None, positions, cfg, seq_len=seq_len)
    first, second = (part.flatten(3).squeeze(2) for part in pairs(turned, rotation, written=True))
    tables = []
    for value, still in ((first, cfg.attention_scaling), (second, 0.0)):
        table = torch.full((*shape, 1, cfg.head_dim), still, device=positions.device)
        for member in pairs(table, rotation, written=True):
            member.copy_(value.reshape(member.shape))
        start = rotation.rotary_offset
        table = table[:, :, 0, start : start + cfg.rotary_dim].to(dtype)
        tables.append(table if positions.dim() > 1 else table[0])
    return tables[0], tables[1]
