"""The demo's second part: calls that a server makes when lengths in a batch differ or cached keys have to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..api.apply import apply_rope
from ..api.rerotation import rerotate_, shift_
from ..measuring import exact
from ..measuring.accuracy import CONTRACT, relative_error
from ..measuring.models import ModelLayers

__all__ = ["ServingRow", "serving_rows"]

TOKENS = 64
SHORT = 1000
SHIFT = -1024


@dataclass
class ServingRow:
    """A call, the error of its result, and the error if the call is skipped.

    Errors are ``max |y - exact| / max |x|`` in float32. ``contract`` bounds ``max_error``: twice the usual bound for
    re-rotated keys, which are rounded twice.
    """

    label: str
    call: str
    max_error: float
    contract: float
    otherwise: str
    otherwise_error: float


def serving_rows(todo: Sequence[ModelLayers], device: torch.device) -> list[ServingRow]:
    """Two rows for each model whose frequencies depend on the length, and a shift for the first of the others."""
    by_length = [layers for layers in todo if layers.config.depends_on_length]
    others = [layers for layers in todo if layers not in by_length and layers.config.num_axes == 1]
    rows = [make(layers, device) for layers in by_length for make in (_own_length, _rerotated)]
    return rows + [_shifted(layers, device) for layers in others[:1]]


def _own_length(layers: ModelLayers, device: torch.device) -> ServingRow:
    """A batch of a short sequence and one at the end of the context."""
    config = layers.config
    q, _ = layers.inputs(TOKENS, 2, device, torch.float32)
    lengths = torch.tensor([SHORT, layers.context], device=device)
    positions = lengths[:, None] - TOKENS + torch.arange(TOKENS, device=device)
    want = torch.cat([exact.rotate(q[i : i + 1], positions[i : i + 1], config, int(lengths[i])) for i in range(2)])
    own, _ = apply_rope(q, None, positions, config, seq_len=lengths)
    together, _ = apply_rope(q, None, positions, config)
    errors = relative_error(own, want, q), relative_error(together, want, q)
    call = f"lengths {SHORT:,} and {layers.context:,} in a batch"
    return ServingRow(layers.label, call, errors[0], CONTRACT, "the longest for all", errors[1])


def _rerotated(layers: ModelLayers, device: torch.device) -> ServingRow:
    """Keys cached at the longest short length, when the sequence grows to the end of the context."""
    params = layers.config.frequency_params
    before = params.switch_length or params.dynamic_length
    scale = params.scaling(before) / params.scaling(layers.context)
    call = f"rerotate_ from {before:,} to {layers.context:,}"

    def rerotate(k: Tensor, positions: Tensor) -> Tensor:
        return rerotate_(k, positions, layers.config, from_seq_len=before, to_seq_len=layers.context)

    return _cached(layers, device, call, (before, before, 0), (layers.context, scale), rerotate)


def _shifted(layers: ModelLayers, device: torch.device) -> ServingRow:
    """Cached keys after the first tokens were dropped."""
    last = layers.context

    def shift(k: Tensor, positions: Tensor) -> Tensor:
        return shift_(k, SHIFT, layers.config)

    return _cached(layers, device, f"shift_ by {SHIFT:,}", (last, last, SHIFT), (last, 1.0), shift)


def _cached(
    layers: ModelLayers, device: torch.device, call: str, start: tuple[int, int, int], then: tuple[int, float],
    change: Callable[[Tensor, Tensor], Tensor],
) -> ServingRow:  # fmt: skip
    """``start``: where positions end, the length rotated with, the shift; ``then``: length and scaling after."""
    end, before, shift = start
    after, scale = then
    _, k = layers.inputs(TOKENS, 1, device, torch.float32)
    positions = torch.arange(end - TOKENS, end, device=device)[None]
    want = scale * exact.rotate(k, positions + shift, layers.config, after)
    cached, _ = apply_rope(k, None, positions, layers.config, seq_len=before)
    otherwise = relative_error(cached, want, k)
    error = relative_error(change(cached, positions), want, k)
    return ServingRow(layers.label, call, error, 2 * CONTRACT, "keys unchanged", otherwise)
