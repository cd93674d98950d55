"""The rotation in plain torch operations: the fallback without a kernel, and the reference that kernels must match."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.frequency import FrequencyParams, fixed_point_turns
from ..core.pairs import pairs, rotate_pairs
from ..core.rotation import Rotation
from ..core.spec import Spec
from .inputs import Inputs

__all__ = ["cos_sin", "rotate", "rotate_table", "rotated_by_table", "unavailable"]

TWO_PI = 2.0 * math.pi


def unavailable(device: torch.device | None = None) -> str | None:
    """``None``: it runs wherever torch does."""
    return None


def rotate(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec) -> None:
    """Rotate (batch, tokens, heads, head_dim) views into the outputs, which may be the same; see :class:`Inputs`."""
    cos, sin = (part.unsqueeze(2) for part in cos_sin(q.shape[0], q.shape[1], q.device, inputs, spec))
    if inputs.inverse:
        sin = -sin
    copied = _groups(q.shape[0], q.shape[1], q.device, inputs)[1]
    for x, out in ((q, q_out), (k, k_out)):
        if x is not None and out is not None:
            y = rotate_pairs(x, (cos, cos), (sin, sin), spec.rotation, inputs.inverse)
            out.copy_(y if copied is None else torch.where(copied.unsqueeze(2), x, y))


def rotate_table(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool,
) -> None:  # fmt: skip
    """Rotate by a caller's table. ``cos``, ``sin``: (batch or 1, tokens, rotary_dim), in the order of the output."""
    for x, out in ((q, q_out), (k, k_out)):
        if x is not None and out is not None:
            out.copy_(rotated_by_table(x, cos, sin, rotation, inverse))


def rotated_by_table(x: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool) -> Tensor:
    """``x`` rotated by a table, in operations that torch can trace and differentiate."""
    c, s = (_table_pairs(table, rotation) for table in (cos, sin))
    if inverse:
        s = -s[1], -s[0]
    return rotate_pairs(x, c, s, rotation, inverse)


def _table_pairs(table: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    first, second = pairs(table, rotation, written=True)
    return first.float().unsqueeze(2), second.float().unsqueeze(2)


def cos_sin(batch: int, tokens: int, device: torch.device, inputs: Inputs, spec: Spec) -> tuple[Tensor, Tensor]:
    """float32 (batch or 1, tokens, pairs) cosines and sines, attention scaling included unless ``unscaled``."""
    group, copied = _groups(batch, tokens, device, inputs)
    angle = _angle(_positions(tokens, group, device, inputs), group, inputs, spec)
    if copied is not None:
        angle = angle.masked_fill(copied, 0.0)
    cos, sin = angle.cos(), angle.sin()
    if not inputs.unscaled:
        scaling = _of_token(_scaling(spec.frequency, inputs.seq_len, device), group)
        if copied is not None:
            scaling = torch.where(copied, 1.0, scaling)
        cos, sin = cos * scaling, sin * scaling
    cos, sin = cos.float(), sin.float()
    if spec.rotation.table_dtype:
        dtype = getattr(torch, spec.rotation.table_dtype)
        cos, sin = cos.to(dtype).float(), sin.to(dtype).float()
    return cos, sin


def _groups(batch: int, tokens: int, device: torch.device, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """(each token's sequence, tokens to copy): (batch or 1, tokens or 1), (1, tokens, 1); ``None`` if not needed."""
    if inputs.cu_seqlens is not None:
        token = torch.arange(tokens, device=device)
        bounds = inputs.cu_seqlens.to(token.dtype)
        group = torch.searchsorted(bounds, token, right=True) - 1
        outside = group >= bounds.numel() - 1
        return group.masked_fill(outside, 0)[None], outside[None, :, None]
    per_batch = any(t is not None and t.numel() > 1 for t in (inputs.offset, inputs.seq_len, inputs.from_seq_len))
    return (torch.arange(batch, device=device)[:, None] if per_batch else None), None


def _of_token(values: Tensor, group: Tensor | None) -> Tensor:
    """``values`` (groups or 1, ...) of each token: (batch or 1, tokens or 1, ...)."""
    if group is None or values.shape[0] == 1:
        return values.unsqueeze(1)
    return values[group]


def _positions(tokens: int, group: Tensor | None, device: torch.device, inputs: Inputs) -> Tensor:
    """(axes, batch or 1, tokens) positions: the given ones, or counted from 0 or an offset."""
    if inputs.positions is not None:
        return inputs.positions
    counted = torch.arange(tokens, device=device)[None]
    if inputs.cu_seqlens is not None and group is not None:
        counted = counted - inputs.cu_seqlens.to(counted.dtype)[group]
    if inputs.offset is not None:
        counted = counted + _of_token(inputs.offset[:, None], group)[..., 0]
    return counted[None]


def _by_length(params: FrequencyParams, seq_len: Tensor | None, row: Callable[[int | None], Tensor]) -> Tensor:
    """(groups or 1, pairs): the short row, ``row(None)``, or the long one for lengths above the switch."""
    short = row(None)[None]
    if seq_len is None or not params.switch_length:
        return short
    return torch.where(seq_len[:, None] > params.switch_length, row(params.switch_length + 1)[None], short)


def _inv_freq(params: FrequencyParams, rotation: Rotation, seq_len: Tensor | None, device: torch.device) -> Tensor:
    """float64 (groups or 1, pairs) inverse frequencies at the given lengths."""

    def row(length: int | None) -> Tensor:
        return torch.tensor(params.inv_freqs(rotation.index, length), dtype=torch.float64, device=device)

    base = _by_length(params, seq_len, row)
    if seq_len is None or not params.dynamic_factor:
        return base
    factor, start = params.dynamic_factor, float(params.dynamic_length)
    alpha = factor * seq_len.to(torch.float64)[:, None].clamp_min(start) / start - (factor - 1.0)
    exponent = torch.tensor(rotation.index, dtype=torch.float64, device=device) * (-2.0 / (params.freq_dim - 2))
    return base * torch.exp2(exponent * torch.log2(alpha))


def _omega(params: FrequencyParams, rotation: Rotation, seq_len: Tensor | None, device: torch.device) -> Tensor:
    """int64 (groups or 1, pairs) turns per position in fixed point, computed on the host unless theta is dynamic."""
    if params.dynamic_factor and seq_len is not None:
        return _fixed_point(_inv_freq(params, rotation, seq_len, device))

    def row(length: int | None) -> Tensor:
        turns = map(fixed_point_turns, params.inv_freqs(rotation.index, length))
        return torch.tensor(list(turns), dtype=torch.int64, device=device)

    return _by_length(params, seq_len, row)


def _scaling(params: FrequencyParams, seq_len: Tensor | None, device: torch.device) -> Tensor:
    """float64 (groups or 1, 1) factor on cos and sin."""
    short = torch.full((1, 1), params.scaling(), dtype=torch.float64, device=device)
    if seq_len is None or params.long_attention_scaling is None:
        return short
    longer = torch.full_like(short, params.long_attention_scaling)
    return torch.where(seq_len[:, None] > params.switch_length, longer, short)


def _angle(positions: Tensor, group: Tensor | None, inputs: Inputs, spec: Spec) -> Tensor:
    """float64 (batch or 1, tokens, pairs) angles in radians, less whole turns."""
    rotation, device = spec.rotation, positions.device
    axis = torch.tensor(rotation.axis or (0,) * rotation.num_pairs, device=device)
    if positions.shape[0] == 1:
        axis = torch.zeros_like(axis)
    of_pair = positions[axis].permute(1, 2, 0)
    exact_integer = rotation.phase == "exact" and not positions.is_floating_point()
    frequencies = _omega if exact_integer else _inv_freq

    def at(seq_len: Tensor | None) -> Tensor:
        freqs = _of_token(frequencies(spec.frequency, rotation, seq_len, device), group)
        if exact_integer:
            return of_pair.long() * freqs
        if rotation.phase == "float32":
            return (of_pair.float() * freqs.float()).double()
        return _wrapped(of_pair.double() * (freqs / TWO_PI)) * TWO_PI

    angle = at(inputs.seq_len)
    if inputs.from_seq_len is not None:
        angle = angle - at(inputs.from_seq_len)
    return angle.double() * (TWO_PI / 2.0**64) if exact_integer else angle


def _wrapped(turns: Tensor) -> Tensor:
    return turns - turns.floor()


def _fixed_point(inv_freq: Tensor) -> Tensor:
    """Turns per position times 2 ** 64, modulo one turn, as the bits of an int64."""
    scaled = _wrapped(inv_freq / TWO_PI) * 2.0**32
    high = scaled.floor()
    low = (scaled - high) * 2.0**32
    return (high.long() << 32) | low.long()
