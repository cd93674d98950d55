"""RotaryPlan: replaces a rotary embedding's forward after a successful probe."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ...api.dynamic_state import DynamicState
from .angles import AngleInputs, Angles, Source

__all__ = ["Order", "RotaryPlan"]

_HALVES = (torch.float16, torch.bfloat16)
_SHORT = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64)


@dataclass(frozen=True)
class Order:
    """The order of a module's positions: "plain" (batch, tokens), "axes first" (axes, batch, tokens) or "axes last"
    (..., tokens, axes)."""

    kind: str
    axes: int = 1
    batched: bool = True
    flipped: bool = False

    def axes_first(self, positions: Tensor) -> tuple[Tensor, tuple[int, ...]] | None:
        """Positions as the kernels take them, and the leading dimensions of the table; ``None`` for other shapes."""
        if self.kind == "axes last":
            if positions.dim() not in (2, 3) or positions.shape[-1] != self.axes:
                return None
            lead = tuple(positions.shape[:-1])
            positions = positions.movedim(-1, 0)
            positions = positions[:, None] if positions.dim() == 2 else positions
            return (positions.flip(0) if self.flipped else positions), lead
        if positions.dim() == 3 and self.kind == "axes first" and positions.shape[0] == self.axes:
            return (positions.flip(0) if self.flipped else positions), tuple(positions.shape[1:])
        if positions.dim() == 1 and self.kind == "plain":
            return positions[None], tuple(positions.shape)
        return (positions, tuple(positions.shape)) if positions.dim() == 2 else None


class RotaryPlan:
    """Replaces a rotary embedding's forward.

    Args:
        sources: by layer type; ``None`` if the module has no layer types.
        order: of its positions.
        leads_with_one: whether its tables have an extra leading dimension of size 1.
        state: the history of ``dynamic``, if it is kept.
    """

    def __init__(
        self,
        sources: dict[str | None, Source],
        order: Order,
        leads_with_one: bool = False,
        state: DynamicState | None = None,
    ) -> None:
        self.sources = sources
        self.order = order
        self.leads_with_one = leads_with_one
        self.state = state

    def angles(self, x: Tensor, positions: Tensor, layer_type: str | None) -> tuple[Angles, Angles] | Angles | None:
        """The angles to return instead of the tables, or ``None`` for positions of another shape."""
        source = self.sources.get(layer_type)
        ordered = self.order.axes_first(_counting(positions))
        if source is None or ordered is None:
            return None
        by_axis, lead = ordered
        seq_len = None
        if source.cfg.depends_on_length:
            history = self.state
            seq_len = positions.amax().to(torch.int64) + 1 if history is None else history.update(positions, layer_type)
        dtype = x.dtype if source.follows_dtype else torch.float32
        inputs = AngleInputs(by_axis, (1, *lead) if self.leads_with_one else lead, seq_len, source, dtype)
        if source.form == "complex":
            return Angles(inputs, "complex")
        return Angles(inputs, "cos"), Angles(inputs, "sin")

    def replica(self) -> RotaryPlan:
        """The same plan with a copy of its history."""
        return RotaryPlan(self.sources, self.order, self.leads_with_one, copy.deepcopy(self.state))


def _counting(positions: Tensor) -> Tensor:
    """Positions in a dtype that the kernels take, where the modules of transformers cast whatever comes to float32."""
    if positions.dtype in _HALVES:
        return positions.float()
    return positions.long() if positions.dtype in _SHORT else positions
