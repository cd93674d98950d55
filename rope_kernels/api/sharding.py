"""DTensors: each rank rotates its own shards without communication, or an error says what to redistribute.

A rotation mixes only the two channels of a pair, so q and k may be sharded over heads (tensor parallel), over tokens
together with their positions (context parallel, in any order), and over the batch. The calls run on the local tensors
instead of through DTensor rules for the operator: such rules would silently gather what is sharded wrongly, and support
neither ``out=`` nor calls in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS
from ..errors import RopeShapeError
from .checks import check_config
from .lengths import longest

# Importing DTensor takes time, so this file does not do it for types: to mypy a DTensor is a Tensor without placements,
# hence every `type: ignore[attr-defined]` below.

__all__ = ["Shards", "is_distributed", "mark_written", "refuse_mixed", "rotate_shards"]


def is_distributed(x: Tensor) -> bool:
    """Whether ``x`` is a DTensor. Does not import torch.distributed, which takes a second."""
    return type(x) is not Tensor and hasattr(x, "placements") and hasattr(x, "device_mesh")


@dataclass
class Shards:
    """How q is sharded: for each dimension of its mesh, the axis of q that it shards, or ``None``."""

    mesh: Any
    placements: Sequence[Any]
    layout: str
    axes: list[int | None]

    @classmethod
    def of(cls, q: Tensor, layout: str, name: str = "q") -> Shards:
        """The sharding of ``q``; :class:`RopeShapeError` if a rank cannot rotate its part of ``q`` alone."""
        placements, mesh = q.placements, q.device_mesh  # type: ignore[attr-defined]
        axes = [_axis(name, q, placement, layout) for placement in placements]
        return cls(mesh, placements, layout, axes)

    @property
    def token_sharded(self) -> bool:
        """Whether ranks hold different tokens."""
        return LAYOUTS[self.layout].tokens in self.axes

    def local(self, x: Tensor) -> Tensor:
        """The local part of q, or of a tensor sharded as q is; differentiable."""
        return x.to_local()  # type: ignore[attr-defined]

    def local_like(self, name: str, x: Tensor, may_differ_in_heads: bool = False) -> Tensor:
        """The local part of ``x``, which must be sharded as q is; k's heads may be sharded or replicated."""
        if not is_distributed(x) or x.device_mesh != self.mesh:  # type: ignore[attr-defined]
            what = "on another mesh" if is_distributed(x) else "a plain tensor"
            raise RopeShapeError(f"{name}: is {what}, must be a DTensor on q's mesh {self.mesh}")
        head_axis = LAYOUTS[self.layout].heads
        for dim, (axis, wanted) in enumerate(zip(Shards.of(x, self.layout, name).axes, self.axes, strict=True)):
            if axis != wanted and not (may_differ_in_heads and {axis, wanted} == {head_axis, None}):
                raise RopeShapeError(
                    f"{name}: {x.placements[dim]} on dimension {dim} of the mesh, where q is "  # type: ignore[attr-defined]
                    f"{self.placements[dim]}; redistribute it to that"
                )
        return self.local(x)

    def positions(self, x: Tensor | None, cu_seqlens: Tensor | None = None, name: str = "positions") -> Tensor | None:
        """The positions of the local tokens, from a DTensor or from a plain tensor with those of all tokens."""
        if x is None or cu_seqlens is not None:
            if self.token_sharded:
                which = "missing" if cu_seqlens is None else "not to be counted by cu_seqlens"
                raise RopeShapeError(f"{name}: {which}; q is sharded over tokens, and every rank would count from 0")
            return x
        batch_dim = x.dim() - 2 if self.layout != "thd" and x.dim() > 1 else None
        return self._part(name, x, {LAYOUTS[self.layout].tokens: x.dim() - 1, LAYOUTS[self.layout].batch: batch_dim})

    def per_sequence(self, name: str, x: Any) -> Any:
        """The lengths or offsets of the local sequences; ``x`` has one for all or one for each."""
        if not isinstance(x, Tensor):
            return x
        return self._part(name, x, {LAYOUTS[self.layout].batch: 0 if x.dim() == 1 else None})

    def _part(self, name: str, x: Tensor, dims: dict[int | None, int | None]) -> Tensor:
        """The local part of ``x``, whose dimension ``dims[axis]`` is sharded as an axis of q, unless its size is 1."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        if not is_distributed(x):
            x = DTensor.from_local(x, self.mesh, [Replicate()] * len(self.axes), run_check=False)
        wanted: list[Any] = []
        for axis in self.axes:
            dim = None if axis is None else dims.get(axis)
            if dim is not None and axis != LAYOUTS[self.layout].tokens and x.shape[dim] == 1:
                dim = None  # one for all sequences
            wanted.append(Replicate() if dim is None else Shard(dim))
        for place, (placement, needed) in enumerate(zip(x.placements, wanted, strict=True)):  # type: ignore[attr-defined]
            if placement != needed and not placement.is_replicate():
                raise RopeShapeError(
                    f"{name}: {placement} on dimension {place} of the mesh, where q is {self.placements[place]}; "
                    f"redistribute it to {needed} or Replicate()"
                )
        # Each rank takes its own part of replicated tensors, without communication.
        return x.redistribute(placements=wanted).to_local()  # type: ignore[attr-defined]

    def whole(self, y: Tensor, like: Tensor) -> Tensor:
        """The DTensor whose local part is ``y``, with the shape and placements of the input ``like``."""
        from torch.distributed.tensor import DTensor

        placements: Any = like.placements  # type: ignore[attr-defined]
        return DTensor.from_local(y, self.mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def rotate_shards(
    call: Callable[..., tuple[Tensor, Tensor | None]], q: Tensor, k: Tensor | None, positions: Tensor | None,
    cfg: RopeConfig, layout: str, seq_len: int | Tensor | None, offset: int | Tensor | None,
    cu_seqlens: Tensor | None, options: dict[str, Any], out: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Run ``call`` (:func:`apply_rope`, or in place :func:`apply_rope_`) on the local parts of q, k and ``out``.

    Raises:
        RopeShapeError: ranks cannot rotate alone with these placements; nothing has been written.
    """
    check_config(cfg, layout)
    shards = Shards.of(q, layout)
    if cfg.depends_on_length and seq_len is None:
        tokens = q.shape[LAYOUTS[layout].tokens]
        rows, starts = _unsharded("positions", positions), _unsharded("offset", offset)
        seq_len = longest(rows, starts, cu_seqlens, shards.local(q), tokens)
    options = options | dict(
        layout=layout, cu_seqlens=cu_seqlens, seq_len=shards.per_sequence("seq_len", seq_len),
        offset=shards.per_sequence("offset", offset),
    )  # fmt: skip
    rows = shards.positions(positions, cu_seqlens)
    local_k = None if k is None else shards.local_like("k", k, may_differ_in_heads=True)
    if out is None:
        q_out, k_out = call(shards.local(q), local_k, rows, cfg, **options)
        return shards.whole(q_out, q), None if k is None or k_out is None else shards.whole(k_out, k)
    q_out = shards.local_like("out: q_out", out[0])
    k_out = None if k is None or out[1] is None else Shards.of(k, layout, "k").local_like("out: k_out", out[1])
    call(shards.local(q), local_k, rows, cfg, **options, out=(q_out, k_out))
    mark_written(*out)
    return out


def mark_written(*tensors: Tensor | None) -> None:
    """Raise the version counters of DTensors whose local parts were written."""
    if not torch.compiler.is_compiling():
        torch._C._increment_version([x for x in tensors if x is not None])


def refuse_mixed(**tensors: Tensor | None) -> None:
    """Raise :class:`RopeShapeError` if one of ``tensors`` is a DTensor, as q is a plain tensor."""
    for name, x in tensors.items():
        if x is not None and is_distributed(x):
            raise RopeShapeError(f"{name}: is a DTensor, q is a plain tensor; both must be one or the other")


def _unsharded(name: str, x: Any) -> Any:
    if not isinstance(x, Tensor) or not is_distributed(x):
        return x
    if all(placement.is_replicate() for placement in x.placements):  # type: ignore[attr-defined]
        return x.to_local()  # type: ignore[attr-defined]
    raise RopeShapeError(f"seq_len: missing; {name} are sharded, so no rank knows the longest sequence")


def _axis(name: str, x: Tensor, placement: Any, layout: str) -> int | None:
    if placement.is_replicate():
        return None
    allowed = [axis for axis in LAYOUTS[layout][:3] if axis is not None]
    if type(placement).__name__ == "Shard" and placement.dim % x.dim() in allowed:
        axis: int = placement.dim % x.dim()
        return axis
    forms = ", ".join(f"Shard({axis})" for axis in allowed)
    raise RopeShapeError(f"{name}: {placement}; redistribute it to {forms} or Replicate()")
