"""Calls with positions that have no angle: those that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Any, TypeVar

import torch
from support.attempts import Attempt
from support.cases import CONFIGS, Case, Made, make, variant

__all__ = ["NO_ANGLES", "NoAngle"]

Kind = TypeVar("Kind", bound=Attempt)
_SEVERAL_AXES: dict[str, Any] = CONFIGS["mrope_contiguous"]
_LONGROPE: dict[str, Any] = CONFIGS["longrope"]


@dataclass(frozen=True)
class NoAngle:
    """A case, the dtype of its positions, and how far results may be from the reference's where these are numbers."""

    case: Case
    dtype: torch.dtype
    atol: float

    def __str__(self) -> str:
        return str(self.case)

    def attempt(self, in_place: bool, kind: Callable[..., Kind]) -> Kind:
        """An attempt of that kind, of which a part must come out NaN and a part must not."""
        case = variant(self.case, name=f"no angle, {self.case}", positions="float", tokens=4)
        attempt = kind(case, in_place, self._made(case), atol=self.atol)
        assert all(y.isnan().any() and y.isfinite().any() for y in attempt.expected)
        return attempt

    def _made(self, case: Case) -> Made:
        """The case's first three tokens have no angle: on several axes, for the pairs of one axis."""
        made = make(case)
        assert made.positions is not None
        rows = made.positions.to(self.dtype).reshape(-1, 1 if case.layout == "thd" else case.batch, case.tokens)
        for token, value in enumerate((nan, inf, -inf)):
            rows[token % len(rows), :, token] = value
        if case.config.get("phase") == "float32":
            rows[0, 0, 0] = 1e300  # infinite in float32
        made.positions = rows.reshape(made.positions.shape)
        return made


NO_ANGLES = [
    NoAngle(Case("half", CONFIGS["default"]), torch.float32, 3e-6),
    NoAngle(Case("interleaved", dict(head_dim=128, pairing="interleaved"), torch.bfloat16), torch.bfloat16, 0.04),
    NoAngle(Case("interleaved to half", dict(head_dim=64, pairing="interleaved_to_half")), torch.float64, 3e-6),
    NoAngle(
        Case("inverse", dict(head_dim=64, pairing="interleaved_to_half"), inverse=True, k_heads=0), torch.float32, 3e-6
    ),
    NoAngle(Case("by elements", CONFIGS["partial_odd"], torch.float16), torch.float16, 0.004),
    NoAngle(Case("frequencies of zero", CONFIGS["proportional"]), torch.float64, 3e-6),
    NoAngle(Case("channels before", CONFIGS["nope_first"]), torch.float32, 3e-6),
    NoAngle(Case("axes", _SEVERAL_AXES), torch.float32, 3e-6),
    NoAngle(Case("axes, interleaved", dict(_SEVERAL_AXES, pairing="interleaved"), torch.float16), torch.float32, 0.004),
    NoAngle(Case("float32 phase", CONFIGS["float32_phase"]), torch.float64, 3e-6),
    NoAngle(Case("rounded table", dict(head_dim=64, table_dtype="bfloat16")), torch.float32, 0.04),
    NoAngle(Case("two lengths", _LONGROPE, seq_len=40, from_seq_len=8, unscaled=True), torch.float32, 3e-6),
    NoAngle(Case("packed, a tail", _LONGROPE, layout="thd", lengths=(2, 1), seq_len=(40, 8)), torch.bfloat16, 3e-6),
]
"""In each kind of kernel that takes floating positions."""
