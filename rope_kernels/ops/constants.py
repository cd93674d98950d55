"""The frequencies and axes of an operator's text, as constants of a traced graph.

Dynamo runs a function marked by ``torch.compiler.assume_constant_result`` and treats its result as a constant. The mark
is set by hand here, as that call would import all of Dynamo with the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.spec import parse_text
from .operators import Arguments

__all__ = ["axes", "inv_freq", "parsed"]


class _Frequencies(NamedTuple):
    """The numbers of a spec's frequencies: see :class:`rope_kernels.core.frequency.FrequencyParams`."""

    initial: tuple[float, ...]
    beyond: tuple[float, ...]
    switch_length: int
    dynamic_factor: float
    dynamic_length: int
    growth: tuple[float, ...]  # the power of alpha by which each frequency changes


def parsed(text: str) -> Any:
    """:func:`rope_kernels.core.spec.parse_text`."""
    return parse_text(text)


def _axes(text: str) -> tuple[int, ...]:
    rotation = parse_text(text).spec.rotation
    return rotation.axis or (0,) * rotation.num_pairs


def _frequencies(text: str) -> tuple[Any, ...]:
    spec = parse_text(text).spec
    p, index = spec.frequency, spec.rotation.index
    beyond = tuple(p.inv_freqs(index, p.switch_length + 1)) if p.switch_length else ()
    growth = tuple(-2.0 * j / (p.freq_dim - 2) for j in index) if p.dynamic_factor else ()
    return tuple(_Frequencies(
        tuple(p.inv_freqs(index)), beyond, p.switch_length, p.dynamic_factor, p.dynamic_length, growth
    ))  # fmt: skip


for _function in (parsed, _axes, _frequencies):
    setattr(_function, "_dynamo_marked_constant", True)  # noqa: B010  (functions have no such attribute to mypy)


def axes(text: str, device: torch.device) -> Tensor:
    """int64 (pairs,): the position axis of each pair."""
    return torch.tensor(_axes(text), dtype=torch.int64, device=device)


def inv_freq(args: Arguments, device: torch.device) -> Tensor:
    """float32 (pairs,) or (batch or 1, tokens or 1, pairs): radians per position, at two lengths their difference."""
    frequencies = _Frequencies(*_frequencies(args.text))
    found = _at(frequencies, args.seq_len, args, device)
    return found if args.from_seq_len is None else found - _at(frequencies, args.from_seq_len, args, device)


def _at(f: _Frequencies, length: Tensor | None, args: Arguments, device: torch.device) -> Tensor:
    initial = torch.tensor(f.initial, dtype=torch.float32, device=device)
    if length is None or not (f.switch_length or f.dynamic_factor):
        return initial
    length = _per_token(length, args)
    if f.switch_length:
        beyond = torch.tensor(f.beyond, dtype=torch.float32, device=device)
        return torch.where(length > f.switch_length, beyond, initial)
    start = float(f.dynamic_length)
    alpha = f.dynamic_factor * length.float().clamp_min(start) / start - (f.dynamic_factor - 1.0)
    return initial * alpha ** torch.tensor(f.growth, dtype=torch.float32, device=device)


def _per_token(length: Tensor, args: Arguments) -> Tensor:
    """(1, 1, 1), (batch, 1, 1) or, of packed sequences, (1, tokens, 1)."""
    if args.cu_seqlens is None or length.shape[0] == 1:
        return length[:, None, None]
    assert args.positions is not None
    token = torch.arange(args.positions.shape[-1], device=length.device)
    group = torch.searchsorted(args.cu_seqlens.to(token.dtype), token, right=True) - 1
    return length[group.clamp_max(length.shape[0] - 1)][None, :, None]
