# mypy: ignore-errors
"""The Triton kernel that norms the heads of q and k and rotates them, in one launch."""

import triton
import triton.language as tl

from .kernels import INTEGERS, POINTERS, rows, turns, units_cos_sin
from .norm_tiles import norm_heads
from .tiles import rotate_heads

WEIGHTS = ["q_weight_ptr", "k_weight_ptr"]
FLOATS = ["q_weight_offset", "k_weight_offset", "q_eps", "k_eps"]


@triton.jit
def heads(x, y, x_head, y_head, inside, rotated, any_past_end, even, odd, weight, offset, eps, HEADS: tl.constexpr,
          BLOCK: tl.constexpr, PACKED: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """:func:`norm_heads`, or :func:`rotate_heads` where there is no norm."""
    if NORM is None:
        rotate_heads(x, y, x_head, y_head, inside, rotated, any_past_end, even, odd, HEADS, BLOCK, PACKED, TILE)
    else:
        norm_heads(x, y, x_head, y_head, inside, rotated, any_past_end, even, odd, weight, offset, eps, HEADS, BLOCK,
                   PACKED, NORM, TILE, None, 0, "")  # fmt: skip


@triton.jit(do_not_specialize=[*INTEGERS, *FLOATS], do_not_specialize_on_alignment=[*POINTERS, *WEIGHTS])
def rotate_norm_kernel(
    # q, k and their outputs: the same tensors if TILE.MEMORY.IN_PLACE; k is None if TILE.K_HEADS is 0
    q_ptr, k_ptr, q_out_ptr, k_out_ptr,
    # positions; int64 offset, seq_len and from_seq_len per group; bounds of packed sequences
    positions_ptr, offset_ptr, seq_len_ptr, from_seq_len_ptr, cu_seqlens_ptr,
    # constants of a spec that are too many for arguments: see cos_sin and frequency
    map_ptr, table_ptr,
    # sizes: tokens of the call and of a batch entry (and its reciprocal), packed sequences
    num_tokens: tl.int32, tokens_per_batch: tl.int32, batches_per_token: tl.float64, num_sequences: tl.int32,
    # strides, in elements
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64,
    k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    q_out_batch: tl.int64, q_out_token: tl.int64, q_out_head: tl.int64,
    k_out_batch: tl.int64, k_out_token: tl.int64, k_out_head: tl.int64,
    positions_axis: tl.int64, positions_batch: tl.int64, positions_token: tl.int64,
    # frequencies: base * ratio ** j, with ratio ** (2 ** b) correctly rounded by the host; the clamped ramp; NTK
    base: tl.float64, p0: tl.float64, p1: tl.float64, p2: tl.float64, p3: tl.float64, p4: tl.float64,
    p5: tl.float64, p6: tl.float64, p7: tl.float64, p8: tl.float64,
    ramp_start: tl.float64, ramp_per_index: tl.float64, ramp_per_frequency: tl.float64,
    ramp_lowest: tl.float64, ramp_highest: tl.float64,
    switch_length: tl.int64, ntk_start: tl.int64, ntk_slope: tl.float64, ntk_power: tl.float64,
    scaling: tl.float32, long_scaling: tl.float32,
    # weights (head_dim,), None without one; what is added to them; what is added to the mean of the squares
    q_weight_ptr, k_weight_ptr,
    q_weight_offset: tl.float32, k_weight_offset: tl.float32, q_eps: tl.float32, k_eps: tl.float32,
    # compile-time constants: plan.Angle, plan.Tile, and plan.RowNorm of q and of k, None without a norm
    ANGLE: tl.constexpr, TILE: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
):  # fmt: skip
    """Norm and rotate q and k. Grid: (ceil(tokens / TILE.TOKENS), 1)."""
    powers = (p0, p1, p2, p3, p4, p5, p6, p7, p8)
    ramp = (ramp_start, ramp_per_index, ramp_per_frequency, ramp_lowest, ramp_highest)
    ntk = (ntk_start, ntk_slope, ntk_power)
    batch, token, inside, known, any_past_end, how, scaling, first, second = turns(
        positions_ptr, offset_ptr, seq_len_ptr, from_seq_len_ptr, cu_seqlens_ptr, map_ptr, table_ptr,
        num_tokens, tokens_per_batch, batches_per_token, num_sequences,
        positions_axis, positions_batch, positions_token, base, powers, ramp, switch_length, ntk,
        scaling, long_scaling, ANGLE, TILE,
    )  # fmt: skip
    PACKED: tl.constexpr = ANGLE.SEARCH_STEPS > 0
    if TILE.Q_HEADS:
        x = rows(q_ptr, batch, token, q_batch, q_token)
        y = rows(q_out_ptr, batch, token, q_out_batch, q_out_token)
        even, odd = units_cos_sin(first, second, token, how, scaling, TILE.Q_BLOCK, ANGLE, TILE)
        heads(x, y, q_head, q_out_head, inside, known, any_past_end, even, odd, q_weight_ptr, q_weight_offset, q_eps,
              TILE.Q_HEADS, TILE.Q_BLOCK, PACKED, Q_NORM, TILE)  # fmt: skip
    if TILE.K_HEADS:
        x = rows(k_ptr, batch, token, k_batch, k_token)
        y = rows(k_out_ptr, batch, token, k_out_batch, k_out_token)
        if not TILE.Q_HEADS or TILE.K_BLOCK != TILE.Q_BLOCK:  # LLVM merges these with those of q
            even, odd = units_cos_sin(first, second, token, how, scaling, TILE.K_BLOCK, ANGLE, TILE)
        heads(x, y, k_head, k_out_head, inside, known, any_past_end, even, odd, k_weight_ptr, k_weight_offset, k_eps,
              TILE.K_HEADS, TILE.K_BLOCK, PACKED, K_NORM, TILE)  # fmt: skip
