"""Calls with positions that have no angle: those that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan
from typing import Any

import torch

from cases import CONFIGS, Case, Made, make, variant

from .calls import ReferenceAttempt

__all__ = ["no_angles"]

_SEVERAL_AXES: dict[str, Any] = CONFIGS["mrope_contiguous"]
_CALLS = [
    (Case("half", CONFIGS["default"]), torch.float32, 3e-6),
    (Case("interleaved", dict(head_dim=128, pairing="interleaved"), torch.bfloat16), torch.bfloat16, 0.04),
    (Case("interleaved to half", dict(head_dim=64, pairing="interleaved_to_half")), torch.float64, 3e-6),
    (Case("by elements", CONFIGS["partial_odd"], torch.float16), torch.float16, 0.004),
    (Case("frequencies of zero", CONFIGS["proportional"]), torch.float64, 3e-6),
    (Case("axes", _SEVERAL_AXES), torch.float32, 3e-6),
    (Case("axes, interleaved", dict(_SEVERAL_AXES, pairing="interleaved"), torch.float16), torch.float32, 0.004),
    (Case("float32 phase", CONFIGS["float32_phase"]), torch.float64, 3e-6),
    (Case("rounded table", dict(head_dim=64, table_dtype="bfloat16")), torch.float32, 0.04),
    (Case("two lengths", CONFIGS["longrope"], seq_len=40, from_seq_len=8, unscaled=True), torch.float32, 3e-6),
]
"""With the dtype of positions, and how far results may be from the reference's where these are numbers."""


def _made(case: Case, dtype: torch.dtype) -> Made:
    """A case whose first three tokens have no angle: on several axes, for the pairs of one axis."""
    made = make(case)
    assert made.positions is not None
    rows = made.positions.to(dtype).reshape(-1, case.batch, case.tokens)
    for token, value in enumerate((nan, inf, -inf)):
        rows[token % len(rows), :, token] = value
    if case.config.get("phase") == "float32":
        rows[0, 0, 0] = 1e300  # infinite in float32
    made.positions = rows.reshape(made.positions.shape)
    return made


def no_angles(in_place: bool) -> Iterator[ReferenceAttempt]:
    """Attempts of which a part must come out NaN, in each kind of kernel that takes floating positions."""
    for call, dtype, atol in _CALLS:
        case = variant(call, name=f"no angle, {call}", positions="float", tokens=4)
        attempt = ReferenceAttempt(case, in_place, _made(case, dtype), atol)
        assert all(y.isnan().any() and y.isfinite().any() for y in attempt.expected)
        yield attempt
