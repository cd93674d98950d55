"""What stands in for a rotary embedding's forward, once a probe has found it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...api.dynamic_state import DynamicState
from .angles import Angles, Rows, Source

__all__ = ["Order", "RotaryPlan"]


@dataclass(frozen=True)
class Order:
    """How positions come: plain (batch, tokens), rows (axes, batch, tokens), or columns (..., tokens, axes)."""

    kind: str
    axes: int = 1
    batched: bool = True
    flipped: bool = False

    def rows(self, positions: Tensor) -> tuple[Tensor, tuple[int, ...]] | None:
        """Positions as the kernels take them, and the leading dimensions of the table; ``None`` for other shapes."""
        if self.kind == "columns":
            if positions.dim() not in (2, 3) or positions.shape[-1] != self.axes:
                return None
            lead = tuple(positions.shape[:-1])
            positions = positions.movedim(-1, 0)
            positions = positions[:, None] if positions.dim() == 2 else positions
            return (positions.flip(0) if self.flipped else positions), lead
        if positions.dim() == 3 and self.kind == "rows" and positions.shape[0] == self.axes:
            return (positions.flip(0) if self.flipped else positions), tuple(positions.shape[1:])
        if positions.dim() == 1 and self.kind == "plain":
            return positions[None], tuple(positions.shape)
        return (positions, tuple(positions.shape)) if positions.dim() == 2 else None


class RotaryPlan:
    """What stands in for a rotary embedding's forward.

    Args:
        sources: by layer type; ``None`` where the module has no layer types.
        order: how its positions come.
        leads_with_one: whether its tables have one more leading dimension of one.
        state: the history of ``dynamic``, if it is to be kept.
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
        """What to return in place of the tables, or ``None`` for positions of another shape."""
        source = self.sources.get(layer_type)
        normal = self.order.rows(positions)
        if source is None or normal is None:
            return None
        rows, lead = normal
        seq_len = None
        if source.cfg.depends_on_length:
            history = self.state
            seq_len = positions.amax().to(torch.int64) + 1 if history is None else history.update(positions, layer_type)
        dtype = x.dtype if source.follows_dtype else torch.float32
        made = Rows(rows, (1, *lead) if self.leads_with_one else lead, seq_len, source, dtype)
        if source.form == "complex":
            return Angles(made, "complex")
        return Angles(made, "cos"), Angles(made, "sin")
