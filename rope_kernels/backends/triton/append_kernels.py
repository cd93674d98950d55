# mypy: ignore-errors
"""The Triton kernel that norms and rotates q and k and stores k and v in a paged KV cache, in one launch."""

import triton
import triton.language as tl

from .append_tiles import cache_rows, entries, slots_of, store_heads, store_values
from .kernels import INTEGERS, POINTERS, rows, turns, units_cos_sin
from .norm_kernels import FLOATS, WEIGHTS, heads
from .tiles import first_pair

APPEND_INTEGERS = ["num_rows", "num_slots", "page_size", "k_scale_head", "v_scale_head", "v_batch", "v_token", "v_head"]
APPEND_INTEGERS += [f"{x}_cache_{axis}" for x in "kv" for axis in ("page", "entry", "head")]
APPEND_FLOATS = ["v_weight_offset", "v_eps"]
APPEND_POINTERS = [f"{x}_ptr" for x in ("v", "k_cache", "v_cache", "slots", "k_scale", "v_scale", "v_weight")]


@triton.jit(
    do_not_specialize=[*INTEGERS, *FLOATS, *APPEND_INTEGERS, *APPEND_FLOATS],
    do_not_specialize_on_alignment=[*POINTERS, *WEIGHTS, *APPEND_POINTERS],
)
def rotate_append_kernel(
    # q, k and their outputs: the same tensors if the tile says IN_PLACE; no k_out if K_OUT is None
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
    v_batch: tl.int64, v_token: tl.int64, v_head: tl.int64,
    positions_axis: tl.int64, positions_batch: tl.int64, positions_token: tl.int64,
    # frequencies: base * ratio ** j, with ratio ** (2 ** b) correctly rounded by the host; the clamped ramp; NTK
    base: tl.float64, p0: tl.float64, p1: tl.float64, p2: tl.float64, p3: tl.float64, p4: tl.float64,
    p5: tl.float64, p6: tl.float64, p7: tl.float64, p8: tl.float64,
    ramp_start: tl.float64, ramp_per_index: tl.float64, ramp_per_frequency: tl.float64,
    ramp_lowest: tl.float64, ramp_highest: tl.float64,
    switch_length: tl.int64, ntk_start: tl.int64, ntk_slope: tl.float64, ntk_power: tl.float64,
    scaling: tl.float32, long_scaling: tl.float32,
    # norms: weights, None without one; what is added to them; what is added to the mean of the squares
    q_weight_ptr, k_weight_ptr, v_weight_ptr,
    q_weight_offset: tl.float32, k_weight_offset: tl.float32, v_weight_offset: tl.float32,
    q_eps: tl.float32, k_eps: tl.float32, v_eps: tl.float32,
    # the cache: v, bytes if they are coded, scales of heads with their strides, slots and how many are given
    v_ptr, k_cache_ptr, v_cache_ptr, k_scale_ptr, v_scale_ptr, k_scale_head: tl.int64, v_scale_head: tl.int64,
    slots_ptr, num_rows: tl.int32,
    # slots of the cache, and of a page with its reciprocal; strides, in elements
    num_slots: tl.int64, page_size: tl.int64, pages_per_slot: tl.float64,
    k_cache_page: tl.int64, k_cache_entry: tl.int64, k_cache_head: tl.int64,
    v_cache_page: tl.int64, v_cache_entry: tl.int64, v_cache_head: tl.int64,
    # compile-time constants: plan.Angle; plan.Tile of q, and of k to k_out and to the cache and of v, None for what
    # there is not; what k and v are coded as; plan.RowNorm, None without a norm
    ANGLE: tl.constexpr, TILE: tl.constexpr, K_OUT: tl.constexpr, K_STORE: tl.constexpr, V_STORE: tl.constexpr,
    K_CODE: tl.constexpr, V_CODE: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, V_NORM: tl.constexpr,
):  # fmt: skip
    """Norm and rotate q and k, and store k and v. Grid: (ceil(tokens / TILE.TOKENS), TILE.CHUNKS)."""
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
    # q comes last: what says where rows are stored takes no registers beside it
    slot = slots_of(slots_ptr, batch, token, known, tokens_per_batch, num_rows, TILE)
    page, entry, is_stored = entries(slot, num_slots, page_size, pages_per_slot)
    if V_STORE is not None and first_pair(TILE) == 0:
        x = rows(v_ptr, batch, token, v_batch, v_token)
        y = cache_rows(v_cache_ptr, page, entry, v_cache_page, v_cache_entry)
        store_values(x, y, v_head, v_cache_head, is_stored, v_weight_ptr, v_weight_offset, v_eps, v_scale_ptr,
                     v_scale_head, V_STORE.Q_HEADS, V_STORE.Q_BLOCK, V_NORM, V_CODE, V_STORE)  # fmt: skip
    if K_STORE is not None:
        x = rows(k_ptr, batch, token, k_batch, k_token)
        y = cache_rows(k_cache_ptr, page, entry, k_cache_page, k_cache_entry)
        even, odd = units_cos_sin(first, second, token, how, scaling, TILE.K_BLOCK, ANGLE, TILE)
        store_heads(x, y, k_head, k_cache_head, inside, is_stored, even, odd, k_weight_ptr, k_weight_offset, k_eps,
                    k_scale_ptr, k_scale_head, TILE.K_HEADS, TILE.K_BLOCK, K_NORM, K_CODE, K_STORE)  # fmt: skip
    if K_OUT is not None:  # after the cache, since k_out may be k
        x = rows(k_ptr, batch, token, k_batch, k_token)
        y = rows(k_out_ptr, batch, token, k_out_batch, k_out_token)
        heads(x, y, k_head, k_out_head, inside, known, any_past_end, even, odd, k_weight_ptr, k_weight_offset, k_eps,
              TILE.K_HEADS, TILE.K_BLOCK, PACKED, K_NORM, K_OUT)  # fmt: skip
    x = rows(q_ptr, batch, token, q_batch, q_token)
    y = rows(q_out_ptr, batch, token, q_out_batch, q_out_token)
    if K_STORE is None or TILE.K_BLOCK != TILE.Q_BLOCK:  # LLVM merges these with those of k
        even, odd = units_cos_sin(first, second, token, how, scaling, TILE.Q_BLOCK, ANGLE, TILE)
    heads(x, y, q_head, q_out_head, inside, known, any_past_end, even, odd, q_weight_ptr, q_weight_offset, q_eps,
          TILE.Q_HEADS, TILE.Q_BLOCK, PACKED, Q_NORM, TILE)  # fmt: skip
