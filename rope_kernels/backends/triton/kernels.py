# mypy: ignore-errors
"""The Triton kernels: rotate q and k in one launch, computing cosines and sines where they are used.

Cosines and sines have a tile's shape and layout, and LLVM merges those of the heads of a thread; nothing goes through
shared memory. Addresses are int64, since tensors may have 2**31 elements.
"""

import triton
import triton.language as tl

from .tiles import channel, first_pair, places, rotate_heads
from .trig import cos_sin, growth, loaded, unseen_zeros

# No argument is specialised by value, so that a new sequence length never recompiles. :func:`places` gives alignment.
INTEGERS = ["num_tokens", "tokens_per_batch", "num_sequences", "switch_length", "ntk_start", "num_rows"]
INTEGERS += [f"{x}_{axis}" for x in ("q", "k", "q_out", "k_out") for axis in ("batch", "token", "head")]
INTEGERS += [f"{x}_{axis}" for x in ("positions", "cos", "sin") for axis in ("axis", "batch", "token", "channel")]
POINTERS = [f"{x}_ptr" for x in ("q", "k", "q_out", "k_out", "positions", "offset", "seq_len", "from_seq_len")]
POINTERS += ["cu_seqlens_ptr", "map_ptr", "table_ptr", "cos_ptr", "sin_ptr"]


@triton.jit
def tokens_of_program(num_tokens, tokens_per_batch, batches_per_token, TILE: tl.constexpr):
    """(batch entry, place in it, whether the token is one of the call's), int32 [1, tokens, 1]."""
    token = tl.program_id(0) * TILE.TOKENS + tl.arange(0, TILE.TOKENS)[None, :, None]
    inside = token < num_tokens
    if TILE.TAIL:
        token = tl.minimum(token, num_tokens - 1)
    batch = token * 0
    if TILE.MEMORY.BATCHED:  # exact: below 2**31 the product is never within its error of the next integer
        batch = ((token.to(tl.float64) + 0.5) * batches_per_token).to(tl.int32)
        token -= batch * tokens_per_batch
    return batch, token, inside


@triton.jit
def rows(ptr, batch, token, batch_stride, token_stride):
    """Pointers to the rows of tokens, [1, tokens, 1]."""
    return ptr + (batch.to(tl.int64) * batch_stride + token.to(tl.int64) * token_stride)


@triton.jit
def sequence_of(token, cu_seqlens_ptr, num_sequences, STEPS: tl.constexpr):
    """The last sequence that begins at or before ``token``; ``num_sequences`` past the end of all.

    The bisection is unrolled: in a loop whose number of steps it does not know, Triton would convert layouts.
    """
    low = token * 0
    high = low + num_sequences
    for _ in tl.static_range(0, STEPS):
        middle = (low + high + 1) >> 1
        before = tl.load(cu_seqlens_ptr + middle) <= token
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
    return low


@triton.jit
def groups(batch, token, inside, cu_seqlens_ptr, num_sequences, STEPS: tl.constexpr):
    """(packed sequence or batch entry of each token, whether there is one, its first token, whether a program has
    tokens past the last sequence)."""
    group = batch
    start = token * 0
    any_past_end = False
    if STEPS:
        group = sequence_of(token, cu_seqlens_ptr, num_sequences, STEPS)
        inside = inside & (group < num_sequences)
        start = tl.load(cu_seqlens_ptr + group)
        any_past_end = (tl.program_id(0) + 1) * token.shape[1] > tl.load(cu_seqlens_ptr + num_sequences)
    return group, inside, start, any_past_end


@triton.jit
def of_group(ptr, group, known, HOW: tl.constexpr):
    """The int64 of each token's group (HOW 2), or the one for all tokens (HOW 1)."""
    return tl.load(ptr + group, mask=known, other=0) if HOW == 2 else tl.load(ptr)


@triton.jit
def length_effects(ptr, group, known, HOW: tl.constexpr, switch_length, ntk, ANGLE: tl.constexpr):
    """(whether the length uses the long row, growth of the ladder per step)."""
    is_long = False
    step = 1.0
    if HOW:
        length = of_group(ptr, group, known, HOW)
        if ANGLE.SWITCHED:
            is_long = length > switch_length
        if ANGLE.GROWS:
            step = growth(length, ntk)
    return is_long, step


@triton.jit
def positions_of(ptr, token, batch, start, axis_stride, batch_stride, token_stride, ANGLE: tl.constexpr):
    """Positions of tokens, [1, tokens, 1] per axis, counted from ``start`` or loaded; negated for the inverse."""
    if ANGLE.COUNTED:
        position = token.to(tl.int64) - start
        found = (-position,) if ANGLE.INVERSE else (position,)
    else:
        p = rows(ptr, batch, token, batch_stride, token_stride)
        AXES: tl.constexpr = ANGLE.AXES
        found = ()
        for axis in tl.static_range(0, AXES):
            position = tl.load(p + axis * axis_stride)
            if position.dtype.is_floating() and (position.dtype.primitive_bitwidth == 16 or ANGLE.PHASE == "float32"):
                position = position.to(tl.float32)
            found = found + ((-position,) if ANGLE.INVERSE else (position,))
    return found


@triton.jit
def turns(
    positions_ptr, offset_ptr, seq_len_ptr, from_seq_len_ptr, cu_seqlens_ptr, map_ptr, table_ptr,
    num_tokens, tokens_per_batch, batches_per_token, num_sequences,
    positions_axis, positions_batch, positions_token, base, powers, ramp, switch_length, ntk,
    scaling, long_scaling, ANGLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program's tokens and what its pairs turn by; the arguments are those of :func:`rotate_kernel`.

    (batch entry, place in it, whether the token is one of the call's, whether it is rotated, whether tokens past all
    sequences exist, then of :func:`units_cos_sin`: ``how``, ``scaling``, ``first`` and ``second``).
    """
    # the program's tokens, the group of each, and what the group decides
    batch, token, inside = tokens_of_program(num_tokens, tokens_per_batch, batches_per_token, TILE)
    group, known, start, any_past_end = groups(batch, token, inside, cu_seqlens_ptr, num_sequences, ANGLE.SEARCH_STEPS)
    is_long, step = length_effects(seq_len_ptr, group, known, ANGLE.LENGTHS, switch_length, ntk, ANGLE)
    from_long, from_step = length_effects(from_seq_len_ptr, group, known, ANGLE.FROM_LENGTHS, switch_length, ntk, ANGLE)
    if ANGLE.OFFSETS:
        start = start - of_group(offset_ptr, group, known, ANGLE.OFFSETS)
    if ANGLE.SCALINGS == 2:
        # a sum, since LLVM compiles a choice between two arguments to one between their addresses
        scaling = tl.where(is_long, long_scaling, 0.0) + tl.where(is_long, 0.0, scaling)
    found = positions_of(positions_ptr, token, batch, start, positions_axis, positions_batch, positions_token, ANGLE)
    how = (found, is_long, step, from_long, from_step, base, powers, ramp)
    pair = first_pair(TILE) + TILE.PAIRS_PER_UNIT * tl.arange(0, TILE.UNITS)[None, None, :]
    first = loaded(pair, map_ptr, table_ptr, ANGLE)
    second = loaded(pair + 1, map_ptr, table_ptr, ANGLE) if TILE.PAIRS_PER_UNIT == 2 else first
    return batch, token, inside, known, any_past_end, how, scaling, first, second


@triton.jit
def units_cos_sin(first, second, token, how, scaling, HEADS: tl.constexpr, ANGLE: tl.constexpr, TILE: tl.constexpr):
    """``even`` and ``odd`` of :func:`rotate_heads`, for tiles of HEADS heads.

    ``first``, ``second``: what was :func:`loaded` for the pairs of each unit; the same if it is one pair.
    """
    zeros = unseen_zeros(token, HEADS)
    c, s = cos_sin(first, zeros, how, scaling, ANGLE)
    even = (c, s, c, s)
    odd = even
    if TILE.PAIRS_PER_UNIT == 2:
        c, s = cos_sin(second, zeros, how, scaling, ANGLE)
        odd = (c, s, c, s)
    return even, odd


@triton.jit(do_not_specialize=INTEGERS, do_not_specialize_on_alignment=POINTERS)
def rotate_kernel(
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
    # compile-time constants: plan.Angle and plan.Tile
    ANGLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rotate q and k. Grid: (ceil(tokens / TILE.TOKENS), TILE.CHUNKS)."""
    powers = (p0, p1, p2, p3, p4, p5, p6, p7, p8)
    ramp = (ramp_start, ramp_per_index, ramp_per_frequency, ramp_lowest, ramp_highest)
    ntk = (ntk_start, ntk_slope, ntk_power)
    batch, token, inside, known, any_past_end, how, scaling, first, second = turns(
        positions_ptr, offset_ptr, seq_len_ptr, from_seq_len_ptr, cu_seqlens_ptr, map_ptr, table_ptr,
        num_tokens, tokens_per_batch, batches_per_token, num_sequences,
        positions_axis, positions_batch, positions_token, base, powers, ramp, switch_length, ntk,
        scaling, long_scaling, ANGLE, TILE,
    )  # fmt: skip
    if TILE.Q_HEADS:
        x = rows(q_ptr, batch, token, q_batch, q_token)
        y = rows(q_out_ptr, batch, token, q_out_batch, q_out_token)
        even, odd = units_cos_sin(first, second, token, how, scaling, TILE.Q_BLOCK, ANGLE, TILE)
        rotate_heads(x, y, q_head, q_out_head, inside, known, any_past_end, even, odd, TILE.Q_HEADS, TILE.Q_BLOCK,
                     ANGLE.SEARCH_STEPS > 0, TILE)  # fmt: skip
    if TILE.K_HEADS:
        x = rows(k_ptr, batch, token, k_batch, k_token)
        y = rows(k_out_ptr, batch, token, k_out_batch, k_out_token)
        if not TILE.Q_HEADS or TILE.K_BLOCK != TILE.Q_BLOCK:  # LLVM merges these with those of q
            even, odd = units_cos_sin(first, second, token, how, scaling, TILE.K_BLOCK, ANGLE, TILE)
        rotate_heads(x, y, k_head, k_out_head, inside, known, any_past_end, even, odd, TILE.K_HEADS, TILE.K_BLOCK,
                     ANGLE.SEARCH_STEPS > 0, TILE)  # fmt: skip


@triton.jit
def table_cos_sin(cos, sin, has_row, pair, cos_channel, sin_channel, INVERSE: tl.constexpr, BY_PAIR: tl.constexpr,
                  TILE: tl.constexpr):  # fmt: skip
    """``cs`` of :func:`rotate` for ``pair``, from a caller's table. ``cos``, ``sin``: pointers, [heads, tokens, 1].

    The table has an entry for each channel, in the order of the output, or BY_PAIR. ``has_row``: a token without a row
    is turned by nothing.
    """
    if BY_PAIR:
        live = has_row & (pair < TILE.PAIRS)
        c = tl.load(places(cos, pair * cos_channel, cos.dtype.element_ty, 1), mask=live, other=1.0).to(tl.float32)
        s = tl.load(places(sin, pair * sin_channel, sin.dtype.element_ty, 1), mask=live, other=0.0).to(tl.float32)
        return c, s, c, s
    first = channel(pair, TILE.READ_PAIRS if INVERSE else TILE.WRITE_PAIRS, TILE) - TILE.OFFSET
    second = first + (1 if (TILE.READ_PAIRS if INVERSE else TILE.WRITE_PAIRS) else TILE.DISTANCE)
    live = pair < TILE.PAIRS
    C: tl.constexpr = cos.dtype.element_ty
    S: tl.constexpr = sin.dtype.element_ty
    c0 = tl.load(places(cos, first * cos_channel, C, 1), mask=live, other=0.0).to(tl.float32)
    c1 = tl.load(places(cos, second * cos_channel, C, 1), mask=live, other=0.0).to(tl.float32)
    s0 = tl.load(places(sin, first * sin_channel, S, 1), mask=live, other=0.0).to(tl.float32)
    s1 = tl.load(places(sin, second * sin_channel, S, 1), mask=live, other=0.0).to(tl.float32)
    return (c0, -s1, c1, -s0) if INVERSE else (c0, s0, c1, s1)


@triton.jit
def table_heads(x, y, x_head, y_head, inside, has_row, cos, sin, cos_channel, sin_channel,
                HEADS: tl.constexpr, BLOCK: tl.constexpr, INVERSE: tl.constexpr, BY_PAIR: tl.constexpr,
                TILE: tl.constexpr):  # fmt: skip
    """:func:`rotate_heads` by a table. It is loaded for each head of a tile, so that it has the tile's layout."""
    head = tl.arange(0, BLOCK)[:, None, None]
    cos += head * 0
    sin += head * 0
    pair = first_pair(TILE) + TILE.PAIRS_PER_UNIT * tl.arange(0, TILE.UNITS)[None, None, :]
    even = table_cos_sin(cos, sin, has_row, pair, cos_channel, sin_channel, INVERSE, BY_PAIR, TILE)
    odd = even
    if TILE.PAIRS_PER_UNIT == 2:
        odd = table_cos_sin(cos, sin, has_row, pair + 1, cos_channel, sin_channel, INVERSE, BY_PAIR, TILE)
    written = inside
    if BY_PAIR and TILE.MEMORY.IN_PLACE:
        written = inside & has_row
    rotate_heads(x, y, x_head, y_head, inside, written, False, even, odd, HEADS, BLOCK, BY_PAIR, TILE)


@triton.jit
def rows_of_positions(ptr, batch, token, batch_stride, token_stride, num_rows):
    """(row of the table of each token, whether there is one)."""
    row = tl.load(rows(ptr, batch, token, batch_stride, token_stride)).to(tl.int64)
    has_row = (row >= 0) & (row < num_rows)
    return tl.where(has_row, row, 0), has_row


@triton.jit(do_not_specialize=INTEGERS, do_not_specialize_on_alignment=POINTERS)
def rotate_table_kernel(
    # q, k and their outputs; the table, and the positions that name its rows (BY_PAIR), else one per token
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, cos_ptr, sin_ptr, positions_ptr,
    # sizes: tokens of the call and of a batch entry, and its reciprocal; rows of the table
    num_tokens: tl.int32, tokens_per_batch: tl.int32, batches_per_token: tl.float64, num_rows: tl.int64,
    # strides, in elements
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64,
    k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    q_out_batch: tl.int64, q_out_token: tl.int64, q_out_head: tl.int64,
    k_out_batch: tl.int64, k_out_token: tl.int64, k_out_head: tl.int64,
    cos_batch: tl.int64, cos_token: tl.int64, sin_batch: tl.int64, sin_token: tl.int64,
    positions_batch: tl.int64, positions_token: tl.int64,
    cos_channel: tl.int64, sin_channel: tl.int64,
    # compile-time constants
    INVERSE: tl.constexpr, BY_PAIR: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rotate q and k by a caller's cosines and sines, on the grid of :func:`rotate_kernel`."""
    batch, token, inside = tokens_of_program(num_tokens, tokens_per_batch, batches_per_token, TILE)
    row, has_row = token, inside
    if BY_PAIR:
        row, has_row = rows_of_positions(positions_ptr, batch, token, positions_batch, positions_token, num_rows)
    cos = rows(cos_ptr, batch, row, cos_batch, cos_token)
    sin = rows(sin_ptr, batch, row, sin_batch, sin_token)
    if TILE.Q_HEADS:
        x = rows(q_ptr, batch, token, q_batch, q_token)
        y = rows(q_out_ptr, batch, token, q_out_batch, q_out_token)
        table_heads(x, y, q_head, q_out_head, inside, has_row, cos, sin, cos_channel, sin_channel,
                    TILE.Q_HEADS, TILE.Q_BLOCK, INVERSE, BY_PAIR, TILE)  # fmt: skip
    if TILE.K_HEADS:
        x = rows(k_ptr, batch, token, k_batch, k_token)
        y = rows(k_out_ptr, batch, token, k_out_batch, k_out_token)
        table_heads(x, y, k_head, k_out_head, inside, has_row, cos, sin, cos_channel, sin_channel,
                    TILE.K_HEADS, TILE.K_BLOCK, INVERSE, BY_PAIR, TILE)  # fmt: skip
