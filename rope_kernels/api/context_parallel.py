"""context_parallel_positions: the positions of a rank's tokens where each rank has an early and a late chunk."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..errors import RopeShapeError
from .overlap import has_memory

__all__ = ["context_parallel_positions"]


def context_parallel_positions(
    num_tokens: int,
    *,
    cp_size: int,
    cp_rank: int,
    cu_seqlens: Tensor | None = None,
    offset: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of a rank's tokens under context parallelism in the order of Megatron-LM and TransformerEngine.

    A sequence is cut into 2 * cp_size chunks; rank r has chunk r, then chunk 2 * cp_size - 1 - r, so that each rank has
    the same share of a causal mask. Nothing is read back from a device.

    Source: ``get_batch_on_this_cp_rank`` of Megatron-LM, ``thd_get_partitioned_indices`` of TransformerEngine.

    Example::

        positions = rk.context_parallel_positions(8192, cp_size=4, cp_rank=rank)
        q, k = rk.apply_rope(local_q, local_k, positions, cfg)  # (batch, 2048, heads, head_dim)

    Args:
        num_tokens: of all ranks together, of one sequence or of all packed ones.
        cp_size: ranks that share each sequence.
        cp_rank: this rank, from 0.
        cu_seqlens: int32 or int64 (sequences + 1,) bounds of packed sequences over all ranks; each of their lengths is
            a multiple of 2 * cp_size. Positions count from 0 in each. ``None``: one sequence.
        offset: added to the positions, in tokens: those that are in the cache already; an int, or (sequences,) with
            ``cu_seqlens``.
        device: of the result; ``None`` is that of ``cu_seqlens``, or torch's default.

    Returns:
        int64 (num_tokens / cp_size,).

    Raises:
        RopeShapeError: a number is out of range, or a length is no multiple of 2 * cp_size.
    """
    _check(num_tokens, cp_size, cp_rank, cu_seqlens)
    chunks, local = 2 * cp_size, num_tokens // cp_size
    device = cu_seqlens.device if device is None and cu_seqlens is not None else device
    index = torch.arange(local, device=device)
    if cu_seqlens is None:
        start, chunk = torch.zeros_like(index[:1]), torch.full((1,), num_tokens // chunks, device=device)
    else:
        bounds = cu_seqlens.to(device=device, dtype=torch.int64) // cp_size
        sequence = (torch.searchsorted(bounds, index, right=True) - 1).clamp(0, bounds.numel() - 2)
        start, chunk = bounds[sequence], (bounds[1:] - bounds[:-1])[sequence] // 2
        if isinstance(offset, Tensor) and offset.dim() == 1 and offset.numel() > 1:
            offset = offset.to(device)[sequence]
    within = index - start
    late = (chunks - 1 - cp_rank) * chunk + within - chunk
    return torch.where(within < chunk, cp_rank * chunk + within, late) + offset


def _check(num_tokens: int, cp_size: int, cp_rank: int, cu_seqlens: Tensor | None) -> None:
    for name, value, least in (("num_tokens", num_tokens, 0), ("cp_size", cp_size, 1), ("cp_rank", cp_rank, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RopeShapeError(f"{name}: got {value!r}, an int of {least} or more is needed")
    if cp_rank >= cp_size:
        raise RopeShapeError(f"cp_rank: got {cp_rank}, ranks are 0 to {cp_size - 1}")
    if num_tokens % (2 * cp_size):
        raise RopeShapeError(f"num_tokens: got {num_tokens}, must be a multiple of 2 * cp_size = {2 * cp_size}")
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise RopeShapeError("cu_seqlens: must be a tensor of (sequences + 1,) bounds")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise RopeShapeError(f"cu_seqlens: dtype {cu_seqlens.dtype}, allowed are int32, int64")
    if cu_seqlens.is_cpu and has_memory(cu_seqlens) and not torch.compiler.is_compiling():
        _check_bounds(cu_seqlens.tolist(), num_tokens, 2 * cp_size)


def _check_bounds(bounds: list[int], num_tokens: int, step: int) -> None:
    steps = [b - a for a, b in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] > num_tokens or any(n < 0 or n % step for n in steps):
        shown = bounds if len(bounds) <= 8 else f"{len(bounds)} bounds from {bounds[0]} to {bounds[-1]}"
        raise RopeShapeError(
            f"cu_seqlens: got {shown}, must rise from 0 to at most {num_tokens} by multiples of 2 * cp_size = {step}"
        )
