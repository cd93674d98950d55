"""Calls with a norm: which norms the case list is run with, their exact results, and how far a result may be off."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from support import oracle
from support.calls import is_public
from support.cases import (
    CASES,
    Case,
    Made,
    bound,
    from_tokens_first,
    make,
    rotated_exactly,
    seed_of,
    tokens_first,
    where_and_how_long,
)  # fmt: skip

import rope_kernels as rk

__all__ = ["CALLS", "CAN_BE_NORMED", "EVERY_CALL", "NORMS", "NormKind", "NormedCall", "exactly", "rotated_after_norm"]

EPS = {"q": 1e-6, "k": 1e-2}
"""The second one decides the result where values are small."""


@dataclass(frozen=True)
class NormKind:
    """The norms of a call. ``q`` and ``k``: "weight", "offset" (1 + weight), "plain" (no weight) or "" (no norm)."""

    q: str
    k: str
    after_rope: bool
    weight_dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        names = "-".join(name or "none" for name in (self.q, self.k))
        return f"{names}-{'after' if self.after_rope else 'before'}-{str(self.weight_dtype)[6:]}"


NORMS = [
    NormKind("weight", "weight", False),
    NormKind("offset", "weight", True, torch.bfloat16),
    NormKind("plain", "plain", False),
    NormKind("plain", "offset", True),
    NormKind("offset", "", False, torch.float16),
    NormKind("", "weight", False, torch.bfloat16),
    NormKind("weight", "offset", True),
]
CAN_BE_NORMED = [case for case in CASES if is_public(case) and not case.inverse]


@dataclass(frozen=True)
class NormedCall:
    """A case and the norms of its heads."""

    case: Case
    kind: NormKind

    def __str__(self) -> str:
        return f"{self.case}-{self.kind}"

    def norm(self, side: str, weight: torch.Tensor | None) -> rk.HeadNorm | None:
        """The norm of ``side``, "q" or "k"."""
        name = getattr(self.kind, side)
        if not name or (side == "k" and not self.case.k_heads):
            return None
        offset = 1.0 if name == "offset" else 0.0
        return rk.HeadNorm(weight, EPS[side], weight_offset=offset, after_rope=self.kind.after_rope)

    def weights(self) -> dict[str, torch.Tensor | None]:
        """Weights of both norms, some negative, one 0; ``None`` where the norm has none."""
        generator = torch.Generator().manual_seed(seed_of(self.case) + 1)
        made: dict[str, torch.Tensor | None] = {}
        for side in "qk":
            values = torch.randn(self.case.config["head_dim"], generator=generator)
            values[0] = 0.0
            has_weight = getattr(self.kind, side) in ("weight", "offset")
            made[side] = values.to(self.kind.weight_dtype) if has_weight else None
        return made

    def options(self, weights: dict[str, torch.Tensor | None]) -> dict[str, rk.HeadNorm | None]:
        """The keywords of ``apply_rope``."""
        return {f"{side}_norm": self.norm(side, weights[side]) for side in "qk"}


def _calls() -> list[NormedCall]:
    """Every case with one kind of norm, and every kind with several cases."""
    several = [case for case in CAN_BE_NORMED if case.name in ("partial-near", "head_dim80-half", "packed-scaled-tail")]
    listed = [NormedCall(case, NORMS[i % len(NORMS)]) for i, case in enumerate(CAN_BE_NORMED)]
    return list(dict.fromkeys([*listed, *(NormedCall(case, kind) for case in several for kind in NORMS)]))


CALLS = _calls()
EVERY_CALL = [NormedCall(case, kind) for case in CAN_BE_NORMED for kind in NORMS]


def normed_exactly(x: torch.Tensor, norm: rk.HeadNorm) -> torch.Tensor:
    """float64: the heads of ``x``, in any layout, normed."""
    x = x.double()
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return y if norm.weight is None else y * (norm.weight.double() + norm.weight_offset)


def exactly(case: Case, x: torch.Tensor, norm: rk.HeadNorm | None) -> torch.Tensor:
    """float64: ``x`` normed and rotated; tokens past all packed sequences as they are."""
    if norm is None:
        return rotated_exactly(case, x)
    y = (
        normed_exactly(rotated_exactly(case, x), norm)
        if norm.after_rope
        else rotated_exactly(case, normed_exactly(x, norm))
    )
    _, group, _ = where_and_how_long(case)
    outside = torch.from_numpy(np.asarray(group) < 0)[:, :, None, None]
    flat = torch.where(outside, tokens_first(x.double(), case.layout), tokens_first(y, case.layout))
    return from_tokens_first(flat, case.layout)


def check(case: Case, got: torch.Tensor, expected: torch.Tensor, norm: rk.HeadNorm | None, x: torch.Tensor) -> None:
    """Whether ``got`` is within the contract: 5e-7 of the largest value of the result, rounded once."""
    assert got.dtype == case.dtype
    if norm is not None:
        # The contract of a norm is the same for fp32 phases, whose own bound is of a rotation alone.
        case = replace(case, config={key: value for key, value in case.config.items() if key != "phase"})
        # bound() multiplies by the attention scaling, which the result has
        scale = max(abs(oracle.inv_freq(case.config, n)[1]) for n in (None, 2**40))
        x = expected / max(scale, 1.0)
    error = (got.double() - expected).abs()
    worst = (error - bound(case, x, expected)).max().item() if error.numel() else -1.0
    assert worst <= 0, f"off by {error.max().item():.3g}, {worst:.3g} more than the contract"


def rotated_after_norm(call: NormedCall) -> tuple[Made, dict[str, torch.Tensor | None], dict[str, torch.Tensor | None]]:
    """(tensors of the case, weights, float64 results of q and k)."""
    made, weights = make(replace(call.case)), call.weights()
    sides = {"q": made.q, "k": made.k}
    expected = {s: None if x is None else exactly(call.case, x, call.norm(s, weights[s])) for s, x in sides.items()}
    return made, weights, expected
