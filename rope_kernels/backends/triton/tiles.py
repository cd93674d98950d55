# mypy: ignore-errors
"""Rotate the rows of one tile: read, rotate, write, and copy the other channels.

A tile is [heads, tokens, units]; ``TILE`` is a :class:`~.plan.Tile`. All loads of a tile come before its stores, so
that a thread waits for memory once per tile. In place, too, rows are read and written by pointers of their own: if both
were one, ptxas would see that rows do not overlap, and move loads behind stores to save registers.
"""

import triton
import triton.language as tl


@triton.jit
def unpack(word, DTYPE: tl.constexpr):
    """(first, second) element of a word in fp32, one instruction each."""
    if tl.bfloat16 == DTYPE:
        first = (word << 16).to(tl.float32, bitcast=True)
        second = (word & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif tl.float16 == DTYPE:
        first = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        second = (word >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        first = (word & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
        second = (word >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return first, second


@triton.jit
def places(rows, channels, ITEM: tl.constexpr, COUNT: tl.constexpr):
    """Pointers to items of type ITEM at ``channels`` of ``rows``, where each COUNT items are contiguous and aligned.

    Gives Triton explicit contiguity and alignment hints. Without them it infers more for some accesses than for others
    and inserts layout conversions, or infers nothing from unknown strides. Contiguity is overstated by 2x on purpose,
    so that rows rather than heads are spread over neighbouring threads even if COUNT is 1; the alignment hint still
    limits vector width.
    """
    pointers = (rows + channels).to(tl.pointer_type(ITEM), bitcast=True)
    BYTES: tl.constexpr = COUNT * ITEM.primitive_bitwidth // 8
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 1, 2 * COUNT]), [1, 1, BYTES])


@triton.constexpr_function
def stored(dtype):
    """The type that elements of ``dtype`` are stored as: 16-bit elements as integers.

    On AMD GPUs Triton drops the hints of :func:`places` for pointers that were not cast, and stores element by element.
    If fp32 were stored as integers too, LLVM would unroll some loops less on NVIDIA GPUs.
    """
    return tl.uint16 if dtype.primitive_bitwidth == 16 else dtype


@triton.jit
def moved(pointers, items, COUNT: tl.constexpr):
    """The same places of other rows. A hint is lost outside the function that computes its pointers: it is repeated."""
    pointers = pointers + items
    BYTES: tl.constexpr = COUNT * pointers.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 1, 2 * COUNT]), [1, 1, BYTES])


@triton.jit
def load(pointers, mask, MASKED: tl.constexpr):
    """Load, with a mask only if MASKED: a masked load costs instructions that clear its registers."""
    return tl.load(pointers, mask=mask) if MASKED else tl.load(pointers)


@triton.jit
def store(pointers, value, mask, MASKED: tl.constexpr):
    """Store, with a mask only if MASKED, in the type of :func:`stored`."""
    value = value.to(pointers.dtype.element_ty, bitcast=True)
    if MASKED:
        tl.store(pointers, value, mask=mask)
    else:
        tl.store(pointers, value)


@triton.jit
def joined(first, second, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """``first`` and ``second`` as neighbours: converted in pairs, within the thread that has them."""
    both = tl.join(first.to(DTYPE), second.to(DTYPE))
    return both.reshape(BLOCK, TILE.TOKENS, 2 * TILE.UNITS)


@triton.jit
def first_pair(TILE: tl.constexpr):
    """First pair of a program's part of the rows."""
    return tl.program_id(1) * TILE.CHUNK if TILE.CHUNKS > 1 else 0


@triton.jit
def channel(pair, NEIGHBOURS: tl.constexpr, TILE: tl.constexpr):
    """Channel of the first member of ``pair``."""
    if NEIGHBOURS:
        place = 2 * pair
    elif TILE.BLOCK_PAIRS < TILE.PAIRS:
        place = pair + TILE.DISTANCE * (pair // TILE.BLOCK_PAIRS)
    else:
        place = pair
    return place + TILE.OFFSET


@triton.jit
def rotate(first, second, cs):
    """Both members of a pair, rotated. ``cs``: (cos, sin) of the first result, then those of the second."""
    return first * cs[0] - second * cs[1], second * cs[2] + first * cs[3]


@triton.jit
def within(mask, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """``mask`` for only the first COUNT of a program's SIZE places of a row."""
    if COUNT < SIZE:
        mask = mask & (tl.arange(0, SIZE)[None, None, :] < COUNT)
    return mask


@triton.jit
def rotate_halves(p, o, mask, keep, even, odd, DTYPE: tl.constexpr, BLOCK: tl.constexpr, LOAD: tl.constexpr,
                  STORE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """:func:`rotate_pairs` for words that hold two neighbours of one half: members of pairs 2 i and 2 i + 1."""
    a0, a1 = unpack(load(p, mask, LOAD), DTYPE)
    b0, b1 = unpack(load(p + TILE.DISTANCE // 2, mask, LOAD), DTYPE)
    c0, d0 = rotate(a0, b0, even)
    c1, d1 = rotate(a1, b1, odd)
    store(o, joined(c0, c1, DTYPE, BLOCK, TILE), keep, STORE)
    store(o + TILE.DISTANCE, joined(d0, d1, DTYPE, BLOCK, TILE), keep, STORE)


@triton.jit
def rotate_pairs(p, o, mask, keep, cs, DTYPE: tl.constexpr, BLOCK: tl.constexpr, LOAD: tl.constexpr,
                 STORE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Rotate one tile from places ``p`` to places ``o`` (pointers).

    ``mask``, ``keep``: where to load and to store. Neighbours are read as words and stored joined; halves, and rows not
    aligned to words, are read and stored element by element.
    """
    if TILE.WORDS and TILE.READ_PAIRS:
        a, b = unpack(load(p, mask, LOAD), DTYPE)
    else:
        a = load(p, mask, LOAD).to(tl.float32)
        b = load(p + (1 if TILE.READ_PAIRS else TILE.DISTANCE), mask, LOAD).to(tl.float32)
    if TILE.MEMORY.IN_PLACE and TILE.READ_PAIRS != TILE.WRITE_PAIRS:
        tl.debug_barrier()  # threads of a row write where others of them read
    c, d = rotate(a, b, cs)
    if TILE.WORDS and TILE.WRITE_PAIRS:
        store(o, joined(c, d, DTYPE, BLOCK, TILE), keep, STORE)
    else:
        store(o, c.to(DTYPE), keep, STORE)
        store(o + (1 if TILE.WRITE_PAIRS else TILE.DISTANCE), d.to(DTYPE), keep, STORE)


@triton.jit
def readable(x, mask, TILE: tl.constexpr):
    """(places in rows ``x`` that units are read from, ``mask`` for them)."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    WORD: tl.constexpr = tl.uint64 if TILE.MEMORY.ITEM_BYTES == 4 else tl.uint32
    ITEM: tl.constexpr = WORD if TILE.READ_WORDS else DTYPE
    pair = first_pair(TILE) + TILE.PAIRS_PER_UNIT * tl.arange(0, TILE.UNITS)[None, None, :]
    p = places(x, channel(pair, TILE.READ_PAIRS, TILE), ITEM, TILE.VECTOR)
    return p, within(mask, TILE.PAIRS // TILE.PAIRS_PER_UNIT, TILE.UNITS)


@triton.jit
def writable(y, keep, TILE: tl.constexpr):
    """(places in rows ``y`` that results, joined or not, are written to, ``keep`` for them)."""
    SIZE: tl.constexpr = TILE.UNITS * TILE.WRITE_ITEMS
    item = tl.arange(0, SIZE)[None, None, :]
    if TILE.WRITE_ITEMS == 2 and TILE.WRITE_PAIRS:
        place = 2 * first_pair(TILE) + item + TILE.OFFSET
        keep = within(keep, 2 * TILE.PAIRS, SIZE)
    else:
        place = channel(first_pair(TILE) + item, TILE.WRITE_PAIRS, TILE)
        keep = within(keep, TILE.PAIRS, SIZE)
    return places(y, place, stored(y.dtype.element_ty), TILE.VECTOR * TILE.WRITE_ITEMS), keep


@triton.jit
def copy_channels(x, y, keep, FIRST: tl.constexpr, LAST: tl.constexpr, TILE: tl.constexpr):
    """Copy channels FIRST to LAST of a tile's rows."""
    ITEM: tl.constexpr = stored(x.dtype.element_ty)
    N: tl.constexpr = 2 * TILE.VECTOR if TILE.WORDS else 1
    WIDTH: tl.constexpr = 2 * TILE.UNITS
    for begin in tl.range(FIRST, LAST, WIDTH):
        element = begin + tl.arange(0, WIDTH)[None, None, :]
        mask = keep & (element < LAST)
        value = tl.load(places(x, element, ITEM, N), mask=mask)
        tl.store(places(y, element, ITEM, N), value, mask=mask)


@triton.jit
def copy_rest(x, y, mask, TILE: tl.constexpr):
    """Copy the channels of a tile that are not rotated. The programs with a row's first part do it."""
    RANGES: tl.constexpr = len(TILE.COPIES)
    if first_pair(TILE) == 0:
        for r in tl.static_range(0, RANGES):
            copy_channels(x, y, mask, TILE.COPIES[r][0], TILE.COPIES[r][1], TILE)


@triton.jit
def copy_tokens(x, y, x_head, y_head, mask, HEADS: tl.constexpr, TILE: tl.constexpr):
    """Copy all channels of the tokens in ``mask``, one head at a time, as there are few such tokens."""
    if first_pair(TILE) == 0:
        for head in tl.range(0, HEADS):
            copy_channels(x + head * x_head, y + head * y_head, mask, 0, TILE.HEAD_DIM, TILE)


@triton.jit
def rotate_heads(x, y, x_head, y_head, inside, rotated, any_past_end, even, odd, HEADS: tl.constexpr,
                 BLOCK: tl.constexpr, PACKED: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Rotate all heads of a program's tokens, BLOCK at a time. ``x``, ``y``: pointers to rows, [1, tokens, 1].

    ``inside``, ``rotated``: the tokens of the call, and those to rotate, [1, tokens, 1]; ``any_past_end``: whether the
    others, past the last of PACKED sequences, exist.
    """
    REST: tl.constexpr = HEADS % BLOCK != 0
    CUT: tl.constexpr = TILE.CHUNK > TILE.PAIRS
    # out of place, no mask: tokens past the end read the last one again
    LOAD: tl.constexpr = CUT or REST or (TILE.TAIL and TILE.MEMORY.IN_PLACE)
    STORE: tl.constexpr = CUT or REST or TILE.TAIL or PACKED
    ITEMS: tl.constexpr = 2 if TILE.READ_WORDS else 1
    if TILE.MEMORY.DENSE_HEADS:
        x_head = TILE.HEAD_DIM
        y_head = TILE.HEAD_DIM
    if PACKED and not TILE.MEMORY.IN_PLACE and any_past_end:
        copy_tokens(x, y, x_head, y_head, inside & (rotated == 0), HEADS, TILE)
    head = tl.arange(0, BLOCK)[:, None, None]
    x += head * x_head
    y += head * y_head
    DTYPE: tl.constexpr = x.dtype.element_ty
    p, mask = readable(x, inside & (head >= 0), TILE)
    o, keep = writable(y, rotated & (head >= 0), TILE)
    for first in tl.range(0, HEADS, BLOCK):
        there = first + head < HEADS if REST else True
        if TILE.PAIRS_PER_UNIT == 2:
            rotate_halves(p, o, mask & there, keep & there, even, odd, DTYPE, BLOCK, LOAD, STORE, TILE)
        else:
            rotate_pairs(p, o, mask & there, keep & there, even, DTYPE, BLOCK, LOAD, STORE, TILE)
        if not TILE.MEMORY.IN_PLACE:
            copy_rest(x, y, rotated & (head >= 0) & there, TILE)
        p = moved(p, BLOCK * (x_head // ITEMS), TILE.VECTOR)
        o = moved(o, BLOCK * y_head, TILE.VECTOR * TILE.WRITE_ITEMS)
        x += BLOCK * x_head
        y += BLOCK * y_head
