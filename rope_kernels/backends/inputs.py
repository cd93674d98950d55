"""The checked inputs of a call, in the one layout that all backends take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..core.norms import Norm

__all__ = ["Append", "Inputs", "Norms"]


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


class Append(NamedTuple):
    """What a call stores in a paged KV cache besides its k, and where.

    Attributes:
        slots: int32 or int64 (rows,), of the first tokens of all sequences in turn: page * page_size + entry. A token
            is not stored if it has no slot, a negative one or one past the cache, or if it is outside all packed
            sequences.
        v: (batch, tokens, kv_heads, width) view, or ``None``.
        v_norm, v_weight: the norm of v's heads and its (width,) weight, or ``None``.
        k_cache, v_cache: (pages, page_size, kv_heads, width) views with last stride 1; ``None`` where k or v is.
        k_scale, v_scale: float32 (1,) or (kv_heads,), a cached number's value over the number; ``None`` where the cache
            has q's dtype.
    """

    slots: torch.Tensor
    v: torch.Tensor | None
    v_norm: Norm | None
    v_weight: torch.Tensor | None
    k_cache: torch.Tensor | None
    v_cache: torch.Tensor | None
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
