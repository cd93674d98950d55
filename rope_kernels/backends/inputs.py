"""The checked inputs of a call, in the one layout that all backends take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..core.norms import Norm

__all__ = ["Inputs", "Norms"]


@dataclass
class Inputs:
    """Positions, lengths and flags of a call; the constants are a :class:`~rope_kernels.core.spec.Spec`.

    A backend gets ``q``, ``k`` and their outputs as (batch, tokens, heads, head_dim) views, whose last stride is 1 and
    whose other strides are free; "thd" tensors have batch 1.

    Attributes:
        positions: (axes, batch or 1, tokens) integer or floating view, or ``None``: counted from 0 in each sequence.
        offset: int64 (1,), (batch,) or (sequences,), added to counted positions; ``None`` is 0.
        seq_len: int64 (1,), (batch,) or (sequences,); never ``None`` if the frequencies depend on the length.
        from_seq_len: as ``seq_len``; the call then rotates by the difference of the phases at the two lengths.
        cu_seqlens: int32 or int64 (sequences + 1,) bounds of packed sequences; tokens past the last are copied.
        inverse: rotate back (the adjoint: sine negated, scaling applied, pairs written where they were read).
        unscaled: without attention scaling.
    """

    positions: torch.Tensor | None
    offset: torch.Tensor | None = None
    seq_len: torch.Tensor | None = None
    from_seq_len: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    inverse: bool = False
    unscaled: bool = False


class Norms(NamedTuple):
    """The norms of a call's heads.

    Attributes:
        q, k: the numbers of the norm; ``None`` if the heads are not normed.
        q_weight, k_weight: (head_dim,) floating tensor, or ``None``.
    """

    q: Norm | None
    k: Norm | None
    q_weight: torch.Tensor | None
    k_weight: torch.Tensor | None
