"""The demo's second part: what a server asks for when lengths in a batch differ, or cached keys have to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..api.apply import apply_rope
from ..api.rerotation import rerotate_, shift_
from ..measuring import exact
from ..measuring.accuracy import CONTRACT, relative_error
from ..measuring.models import Case

__all__ = ["ServingRow", "serving_rows"]

TOKENS = 64
SHORT = 1000
SHIFT = -1024


@dataclass
class ServingRow:
    """A call, how far its result is from the exact one, and how far the result without it would be.

    Errors are ``max |y - exact| / max |x|`` in float32; ``contract`` is what ``max_error`` may be: keys that are turned
    on have been rounded twice.
    """

    label: str
    call: str
    max_error: float
    contract: float
    otherwise: str
    otherwise_error: float


def serving_rows(todo: Sequence[Case], device: torch.device) -> list[ServingRow]:
    """The rows of the models whose frequencies depend on the length, and a shift for the first of the others."""
    by_length = [case for case in todo if case.config.depends_on_length]
    rows = [make(case, device) for case in by_length for make in (_own_length, _turned_on)]
    return rows + [_moved(case, device) for case in todo if case not in by_length and case.config.num_axes == 1][:1]


def _own_length(case: Case, device: torch.device) -> ServingRow:
    """A short sequence beside one at the end of the context."""
    q, _ = case.inputs(TOKENS, 2, device, torch.float32)
    lengths = torch.tensor([SHORT, case.context], device=device)
    positions = lengths[:, None] - TOKENS + torch.arange(TOKENS, device=device)
    want = torch.cat([exact.rotate(q[i : i + 1], positions[i : i + 1], case.config, int(lengths[i])) for i in range(2)])
    own, _ = apply_rope(q, None, positions, case.config, seq_len=lengths)
    together, _ = apply_rope(q, None, positions, case.config)
    errors = relative_error(own, want, q), relative_error(together, want, q)
    call = f"lengths {SHORT:,} and {case.context:,} in a batch"
    return ServingRow(case.label, call, errors[0], CONTRACT, "the longest for all", errors[1])


def _turned_on(case: Case, device: torch.device) -> ServingRow:
    """Keys cached at the last short length, when the next token comes."""
    params = case.config.frequency_params
    before = params.switch_length or params.dynamic_length
    scale = params.scaling(before) / params.scaling(case.context)
    call = f"rerotate_ from {before:,} to {case.context:,}"

    def turn(k: Tensor, positions: Tensor) -> Tensor:
        return rerotate_(k, positions, case.config, from_seq_len=before, to_seq_len=case.context)

    return _cached(case, device, call, (before, before, 0), (case.context, scale), turn)


def _moved(case: Case, device: torch.device) -> ServingRow:
    """Keys when the first tokens leave the cache."""
    last = case.context

    def move(k: Tensor, positions: Tensor) -> Tensor:
        return shift_(k, SHIFT, case.config)

    return _cached(case, device, f"shift_ by {SHIFT:,}", (last, last, SHIFT), (last, 1.0), move)


def _cached(
    case: Case, device: torch.device, call: str, start: tuple[int, int, int], then: tuple[int, float],
    turn: Callable[[Tensor, Tensor], Tensor],
) -> ServingRow:  # fmt: skip
    """``start``: where positions end, the length rotated with, the shift; ``then``: length and scaling after."""
    end, before, shift = start
    after, scale = then
    _, k = case.inputs(TOKENS, 1, device, torch.float32)
    positions = torch.arange(end - TOKENS, end, device=device)[None]
    want = scale * exact.rotate(k, positions + shift, case.config, after)
    cached, _ = apply_rope(k, None, positions, case.config, seq_len=before)
    otherwise = relative_error(cached, want, k)
    error = relative_error(turn(cached, positions), want, k)
    return ServingRow(case.label, call, error, 2 * CONTRACT, "keys left alone", otherwise)
