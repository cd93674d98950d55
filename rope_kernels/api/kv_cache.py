"""KVCache: where the k and v of a call are stored; and the slots of tokens in a cache of pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RopeShapeError
from . import checks

__all__ = ["KVCache", "slots_of"]

_INDEX_DTYPES = (torch.int32, torch.int64)


class KVCache:
    """A paged KV cache and the slots that the tokens of one step go to. It owns nothing and copies nothing.

    A cache is a view ``(pages, page_size, kv_heads, width)`` of any strides whose last one is 1. vLLM's and
    FlashInfer's NHD caches fit as they are; HND caches and transformers' static cache fit as ``.transpose(1, 2)``. k's
    and v's widths may differ. MLA's one buffer of ``(pages, page_size, 576)`` takes its rotated part as k and its
    latent part as v::

        rk.KVCache(kv[..., 512:].unsqueeze(2), kv[..., :512].unsqueeze(2), slots)

    Make one for each step; see :func:`rope_kernels.apply_rope_append`.

    Args:
        k: the cache of rotated k, or ``None`` if k is not stored.
        v: the cache of v, or ``None`` if v is not stored.
        slots: int32 or int64, ``page * page_size + entry`` of each token: (batch, seq), or flat in the order of the
            tokens. A token with a negative slot is not stored, nor are those past the end of flat slots. Two tokens
            must not have one slot: which of them is stored is undefined.
        k_scale: for a cache of float8_e4m3fn, float8_e5m2 or int8: float32, () or (kv_heads,), on its device. A value
            is the stored number times the scale, as in vLLM; FlashInfer's scale is the reciprocal.
        v_scale: the same for v.

    Raises:
        RopeShapeError: an argument is no tensor, or both caches are missing. The other checks come with the call.
    """

    __slots__ = ("k", "k_scale", "slots", "v", "v_scale")

    def __init__(
        self, k: Tensor | None, v: Tensor | None, slots: Tensor, k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        if k is None and v is None:
            raise RopeShapeError("cache: k and v are both None, one of them is needed")
        checks.check_tensor("slots", slots)
        for name, x in (("cache.k", k), ("cache.v", v), ("k_scale", k_scale), ("v_scale", v_scale)):
            if x is not None:
                checks.check_tensor(name, x)
        self.k, self.v, self.slots, self.k_scale, self.v_scale = k, v, slots, k_scale, v_scale

    def __repr__(self) -> str:
        """Shapes and dtypes."""
        caches = ", ".join(
            f"{name}={None if x is None else (*x.shape, x.dtype)}" for name, x in (("k", self.k), ("v", self.v))
        )
        return f"KVCache({caches}, slots={tuple(self.slots.shape)})"


def slots_of(block_table: Tensor, positions: Tensor, page_size: int, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """The slots of tokens in a paged cache: once a step, for all layers. The host waits for nothing.

    Args:
        block_table: int32 or int64 (sequences, max_pages): the pages of each sequence, in order; a negative page has no
            memory.
        positions: int32 or int64: (sequences, seq), or packed (tokens,) with ``cu_seqlens``, or one token per sequence
            (sequences,). A token's place in its sequence, whatever it is rotated to.
        page_size: tokens of a page.
        cu_seqlens: int32 or int64 (sequences + 1,), the bounds of packed sequences.

    Returns:
        int64 slots of the shape of ``positions``; -1, which is not stored, for a negative page or position, for one
        past the block table, and for a token outside all packed sequences.

    Raises:
        RopeShapeError: a tensor does not fit.
    """
    _check_slots_of(block_table, positions, page_size, cu_seqlens)
    sequences, max_pages = block_table.shape
    where = positions.to(torch.int64)
    if cu_seqlens is not None:
        token = torch.arange(positions.shape[0], device=positions.device)
        row = torch.searchsorted(cu_seqlens.to(torch.int64), token, right=True) - 1
        is_inside = row < sequences
        row = row.clamp_max(sequences - 1)
    else:
        row = torch.arange(sequences, device=positions.device)
        is_inside = torch.ones_like(row, dtype=torch.bool)
        if positions.dim() == 2:
            row, is_inside = row[:, None], is_inside[:, None]
    page_of = where.div(page_size, rounding_mode="floor")
    is_inside = is_inside & (page_of >= 0) & (page_of < max_pages)
    page = block_table[row, page_of.clamp(0, max_pages - 1)].to(torch.int64)
    slots = page * page_size + where.remainder(page_size)
    return torch.where(is_inside & (page >= 0), slots, -1)


def _check_slots_of(block_table: Tensor, positions: Tensor, page_size: int, cu_seqlens: Tensor | None) -> None:
    for name, x in (("block_table", block_table), ("positions", positions), ("cu_seqlens", cu_seqlens)):
        if x is None:
            continue
        checks.check_tensor(name, x)
        if x.dtype not in _INDEX_DTYPES:
            raise RopeShapeError(f"{name}: dtype {x.dtype}, allowed are int32, int64")
        if x.device != block_table.device:
            raise RopeShapeError(f"{name}: on {x.device}, must be on block_table's {block_table.device}")
    if isinstance(page_size, bool) or not isinstance(page_size, int) or page_size < 1:
        raise RopeShapeError(f"page_size: got {page_size!r}, must be a positive int")
    if block_table.dim() != 2 or 0 in block_table.shape:
        raise RopeShapeError(f"block_table: shape {tuple(block_table.shape)}, must be (sequences, max_pages)")
    sequences = block_table.shape[0]
    if cu_seqlens is not None:
        if cu_seqlens.shape != (sequences + 1,):
            raise RopeShapeError(f"cu_seqlens: shape {tuple(cu_seqlens.shape)}, must be ({sequences + 1},)")
        if positions.dim() != 1:
            raise RopeShapeError(f"positions: shape {tuple(positions.shape)}, must be (tokens,) with cu_seqlens")
    elif positions.dim() not in (1, 2) or positions.shape[0] != sequences:
        raise RopeShapeError(
            f"positions: shape {tuple(positions.shape)}, allowed are ({sequences}, seq), and ({sequences},) for one "
            "token per sequence; packed tokens need cu_seqlens"
        )
