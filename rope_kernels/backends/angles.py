"""The angles of a rotation in plain torch operations: cosines and sines that every kernel must match."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.frequency import FrequencyParams, fixed_point_turns
from ..core.spec import Spec
from .inputs import Inputs

__all__ = ["copied_tokens", "cos_sin", "is_watched", "kept_tensors", "wide_cos_sin"]

TWO_PI = 2.0 * math.pi
_RADIANS = torch.tensor(TWO_PI / 2.0**64, dtype=torch.float64, device="cpu")
"""Per unit of a phase in fixed point; a tensor, because one multiplication by it converts as well."""
_WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices that have no float64. Their angles are made on the CPU."""


def cos_sin(batch: int, tokens: int, device: torch.device, inputs: Inputs, spec: Spec) -> tuple[Tensor, Tensor]:
    """float32 (batch or 1, tokens, pairs) cosines and sines, attention scaling included unless ``unscaled``."""
    if device.type in _WITHOUT_FLOAT64:
        cos, sin = wide_cos_sin(batch, tokens, torch.device("cpu"), _on_cpu(inputs), spec)
        return cos.float().to(device), sin.float().to(device)
    cos, sin = wide_cos_sin(batch, tokens, device, inputs, spec)
    return cos.float(), sin.float()


def _on_cpu(inputs: Inputs) -> Inputs:
    def here(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.cpu()

    return replace(
        inputs, positions=here(inputs.positions), offset=here(inputs.offset), seq_len=here(inputs.seq_len),
        from_seq_len=here(inputs.from_seq_len), cu_seqlens=here(inputs.cu_seqlens),
    )  # fmt: skip


def wide_cos_sin(batch: int, tokens: int, device: torch.device, inputs: Inputs, spec: Spec) -> tuple[Tensor, Tensor]:
    """:func:`cos_sin` before it is rounded to float32: float64, or the dtype that the spec has for tables."""
    group, copied = _groups(batch, tokens, device, inputs)
    angle = _angle(_positions(tokens, group, device, inputs), group, inputs, spec)
    if copied is not None:
        angle = angle.masked_fill(copied, 0.0)
    cos, sin = angle.cos(), angle.sin()
    if not inputs.unscaled and not _has_no_scaling(spec.frequency):
        scaling = _of_token(_scaling(spec.frequency, inputs.seq_len, device), group)
        if copied is not None:
            scaling = torch.where(copied, 1.0, scaling)
        cos, sin = cos * scaling, sin * scaling
    if spec.rotation.table_dtype:
        dtype = getattr(torch, spec.rotation.table_dtype)
        cos, sin = cos.float().to(dtype), sin.float().to(dtype)
    return cos, sin


def copied_tokens(batch: int, tokens: int, device: torch.device, inputs: Inputs) -> Tensor | None:
    """bool (1, tokens, 1): the tokens past the last packed sequence, which are copied; ``None`` if there are none."""
    return _groups(batch, tokens, device, inputs)[1]


def is_watched() -> bool:
    """Whether a mode or a transform sees every tensor that is made now, so that none may be kept for other calls."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()


def kept_tensors() -> AbstractContextManager[object]:
    """Where tensors are made that are kept for other calls: those of inference mode would serve in that mode only."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _groups(batch: int, tokens: int, device: torch.device, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """(each token's sequence, tokens to copy): (batch or 1, tokens or 1), (1, tokens, 1); ``None`` if not needed."""
    if inputs.cu_seqlens is not None:
        token = torch.arange(tokens, device=device)
        bounds = inputs.cu_seqlens.to(token.dtype)
        group = torch.searchsorted(bounds, token, right=True) - 1
        outside = group >= bounds.numel() - 1
        return group.masked_fill(outside, 0)[None], outside[None, :, None]
    for x in (inputs.offset, inputs.seq_len, inputs.from_seq_len):
        if x is not None and x.numel() > 1:
            return torch.arange(batch, device=device)[:, None], None
    return None, None


def _of_token(values: Tensor, group: Tensor | None) -> Tensor:
    """``values`` (groups or 1, ...) of each token: (1, ...), which serves all, or (batch or 1, tokens or 1, ...)."""
    return values if values.shape[0] == 1 or group is None else values[group]


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


class _Constants(NamedTuple):
    """The numbers of a spec as CPU tensors.

    Attributes:
        turns: int64 (1 or 2, pairs), turns per position in fixed point; a second row is for lengths above the switch.
        inv_freq: float64 (1 or 2, pairs), radians per position, rows likewise.
        axis: int64 (pairs,), the axis of positions of each pair; ``None`` if there is one.
    """

    turns: Tensor
    inv_freq: Tensor
    axis: Tensor | None


_KEPT = 64
_kept: dict[int, tuple[Spec, _Constants]] = {}
"""By the id of a spec, which stays its own while it is kept here: a spec's hash takes longer than a rotation's pass."""


def _constants(spec: Spec) -> _Constants:
    found = _kept.get(id(spec))
    if found is not None:
        return found[1]
    made = _made_constants(spec)
    if not is_watched():
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[id(spec)] = spec, made
    return made


def _made_constants(spec: Spec) -> _Constants:
    params, index = spec.frequency, spec.rotation.index
    lengths = (None, params.switch_length + 1) if params.switch_length else (None,)
    rows = [params.inv_freqs(index, length) for length in lengths]
    with kept_tensors():
        turns = torch.tensor([list(map(fixed_point_turns, row)) for row in rows], dtype=torch.int64, device="cpu")
        inv_freq = torch.tensor(rows, dtype=torch.float64, device="cpu")
        axis = torch.tensor(spec.rotation.axis, device="cpu") if spec.rotation.axis else None
    return _Constants(turns, inv_freq, axis)


def _by_length(params: FrequencyParams, seq_len: Tensor | None, rows: Tensor) -> Tensor:
    """(groups or 1, pairs): the first of ``rows``, or the second for lengths above the switch."""
    if seq_len is None or not params.switch_length:
        return rows if rows.shape[0] == 1 else rows[:1]
    return torch.where(seq_len[:, None] > params.switch_length, rows[1:], rows[:1])


def _inv_freq(spec: Spec, seq_len: Tensor | None, device: torch.device) -> Tensor:
    """float64 (groups or 1, pairs) inverse frequencies at the given lengths."""
    params = spec.frequency
    base = _by_length(params, seq_len, _constants(spec).inv_freq.to(device))
    if seq_len is None or not params.dynamic_factor:
        return base
    factor, start = params.dynamic_factor, float(params.dynamic_length)
    alpha = factor * seq_len.to(torch.float64)[:, None].clamp_min(start) / start - (factor - 1.0)
    exponent = torch.tensor(spec.rotation.index, dtype=torch.float64, device=device) * (-2.0 / (params.freq_dim - 2))
    return base * torch.exp2(exponent * torch.log2(alpha))


def _omega(spec: Spec, seq_len: Tensor | None, device: torch.device) -> Tensor:
    """int64 (groups or 1, pairs) turns per position in fixed point, computed on the host unless theta is dynamic."""
    if spec.frequency.dynamic_factor and seq_len is not None:
        return _fixed_point(_inv_freq(spec, seq_len, device))
    return _by_length(spec.frequency, seq_len, _constants(spec).turns.to(device))


def _has_no_scaling(params: FrequencyParams) -> bool:
    return params.attention_scaling == 1.0 and params.long_attention_scaling in (None, 1.0)


def _scaling(params: FrequencyParams, seq_len: Tensor | None, device: torch.device) -> Tensor:
    """float64 (groups or 1, 1) factor on cos and sin."""
    short = torch.full((1, 1), params.scaling(), dtype=torch.float64, device=device)
    if seq_len is None or params.long_attention_scaling is None:
        return short
    longer = torch.full_like(short, params.long_attention_scaling)
    return torch.where(seq_len[:, None] > params.switch_length, longer, short)


def _of_pairs(positions: Tensor, spec: Spec) -> Tensor:
    """(batch or 1, tokens, pairs or 1): the position that each pair is rotated to."""
    axis = _constants(spec).axis
    if positions.shape[0] > 1:
        positions = positions[:1] if axis is None else positions[axis.to(positions.device)]
    return positions.permute(1, 2, 0)


def _angle(positions: Tensor, group: Tensor | None, inputs: Inputs, spec: Spec) -> Tensor:
    """float64 (batch or 1, tokens, pairs) angles in radians, less whole turns."""
    of_pair = _of_pairs(positions, spec)
    is_exact = spec.rotation.phase == "exact"
    in_fixed_point = is_exact and not positions.is_floating_point()
    phase = _turned if in_fixed_point else _wrapped_angle if is_exact else _float32_angle
    angle = phase(of_pair, inputs.seq_len, group, spec)
    if inputs.from_seq_len is not None:
        angle = angle - phase(of_pair, inputs.from_seq_len, group, spec)
    return angle * _RADIANS if in_fixed_point else angle


def _turned(of_pair: Tensor, seq_len: Tensor | None, group: Tensor | None, spec: Spec) -> Tensor:
    """int64 (batch or 1, tokens, pairs) turns in fixed point, less whole ones."""
    return of_pair.long() * _of_token(_omega(spec, seq_len, of_pair.device), group)


def _wrapped_angle(of_pair: Tensor, seq_len: Tensor | None, group: Tensor | None, spec: Spec) -> Tensor:
    freqs = _of_token(_inv_freq(spec, seq_len, of_pair.device), group)
    return _wrapped(of_pair.double() * (freqs / TWO_PI)) * TWO_PI


def _float32_angle(of_pair: Tensor, seq_len: Tensor | None, group: Tensor | None, spec: Spec) -> Tensor:
    freqs = _of_token(_inv_freq(spec, seq_len, of_pair.device), group)
    return (of_pair.float() * freqs.float()).double()


def _wrapped(turns: Tensor) -> Tensor:
    return turns - turns.floor()


def _fixed_point(inv_freq: Tensor) -> Tensor:
    """Turns per position times 2 ** 64, modulo one turn, as the bits of an int64."""
    scaled = _wrapped(inv_freq / TWO_PI) * 2.0**32
    high = scaled.floor()
    low = (scaled - high) * 2.0**32
    return (high.long() << 32) | low.long()
