# mypy: ignore-errors
"""Rotating the rows of a tile: how they are read, turned, written and copied.

A tile is [heads, tokens, units], ``TILE`` a :class:`~.triton_plan.Tile`. All of a tile's loads come before its
stores, which no compiler can move them over.
"""

import triton
import triton.language as tl


@triton.jit
def unpack(word, DTYPE: tl.constexpr):
    """(first, second) element of a word in fp32, by one instruction each."""
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

    Triton is told so, and takes neither more, as it would infer for some of a tile's accesses and then convert
    layouts, nor less, as it must with strides that are unknown to it. It is told twice the contiguity, so that rows
    rather than heads go over neighbouring threads also where COUNT is 1; alignment bounds the accesses.
    """
    pointers = (rows + channels).to(tl.pointer_type(ITEM), bitcast=True)
    BYTES: tl.constexpr = COUNT * ITEM.primitive_bitwidth // 8
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 1, 2 * COUNT]), [1, 1, BYTES])


@triton.jit
def stored(rows):
    """The type that elements of ``rows`` are stored as: 16 bits as integers.

    For AMD's GPUs Triton forgets what :func:`places` told it of pointers that were not cast, and goes element by
    element. With fp32 as integers too, LLVM would unroll some loops less for NVIDIA's.
    """
    DTYPE: tl.constexpr = rows.dtype.element_ty
    ITEM: tl.constexpr = tl.uint16 if DTYPE.primitive_bitwidth == 16 else DTYPE
    return ITEM


@triton.jit
def moved(pointers, items, COUNT: tl.constexpr):
    """The same places of other rows. (A hint stays only with what its own function computes, so it is repeated.)"""
    pointers = pointers + items
    BYTES: tl.constexpr = COUNT * pointers.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(tl.max_contiguous(pointers, [1, 1, 2 * COUNT]), [1, 1, BYTES])


@triton.jit
def load(pointers, mask, MASKED: tl.constexpr):
    """A masked load costs instructions that clear its registers."""
    return tl.load(pointers, mask=mask) if MASKED else tl.load(pointers)


@triton.jit
def store(pointers, value, mask, MASKED: tl.constexpr):
    """The counterpart of :func:`load`, in the type that :func:`stored` says."""
    value = value.to(pointers.dtype.element_ty, bitcast=True)
    if MASKED:
        tl.store(pointers, value, mask=mask)
    else:
        tl.store(pointers, value)


@triton.jit
def joined(first, second, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Elements side by side, in the thread that has them, converted in pairs."""
    both = tl.join(first.to(DTYPE), second.to(DTYPE))
    return both.reshape(BLOCK, TILE.TOKENS, 2 * TILE.UNITS)


@triton.jit
def first_pair(TILE: tl.constexpr):
    """Where a program's part of the rows begins."""
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
def turned(first, second, turn):
    """The rotation. ``turn``: (cos, sin) of the first result, (cos, sin) of the second."""
    return first * turn[0] - second * turn[1], second * turn[2] + first * turn[3]


@triton.jit
def within(mask, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """``mask`` without the places of a row, SIZE of a program, that are not among the first COUNT."""
    if COUNT < SIZE:
        mask = mask & (tl.arange(0, SIZE)[None, None, :] < COUNT)
    return mask


@triton.jit
def rotate_halves(p, o, mask, keep, even, odd, DTYPE: tl.constexpr, BLOCK: tl.constexpr, LOAD: tl.constexpr,
                  STORE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """:func:`rotate_pairs` for words that hold two neighbours of one half: pairs 2 i and 2 i + 1."""
    a0, a1 = unpack(load(p, mask, LOAD), DTYPE)
    b0, b1 = unpack(load(p + TILE.DISTANCE // 2, mask, LOAD), DTYPE)
    c0, d0 = turned(a0, b0, even)
    c1, d1 = turned(a1, b1, odd)
    store(o, joined(c0, c1, DTYPE, BLOCK, TILE), keep, STORE)
    store(o + TILE.DISTANCE, joined(d0, d1, DTYPE, BLOCK, TILE), keep, STORE)


@triton.jit
def rotate_pairs(p, o, mask, keep, turn, DTYPE: tl.constexpr, BLOCK: tl.constexpr, LOAD: tl.constexpr,
                 STORE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Rotate one tile from places ``p`` to places ``o`` (pointers).

    ``mask``, ``keep``: where to load and to store. Neighbours are read as words and stored joined; members that lie
    apart, or rows not aligned to words, go element by element.
    """
    if TILE.WORDS and TILE.READ_PAIRS:
        a, b = unpack(load(p, mask, LOAD), DTYPE)
    else:
        a = load(p, mask, LOAD).to(tl.float32)
        b = load(p + (1 if TILE.READ_PAIRS else TILE.DISTANCE), mask, LOAD).to(tl.float32)
    if TILE.ROWS.IN_PLACE and TILE.READ_PAIRS != TILE.WRITE_PAIRS:
        tl.debug_barrier()  # threads of a row write where others of them read
    c, d = turned(a, b, turn)
    if TILE.WORDS and TILE.WRITE_PAIRS:
        store(o, joined(c, d, DTYPE, BLOCK, TILE), keep, STORE)
    else:
        store(o, c.to(DTYPE), keep, STORE)
        store(o + (1 if TILE.WRITE_PAIRS else TILE.DISTANCE), d.to(DTYPE), keep, STORE)


@triton.jit
def readable(x, mask, TILE: tl.constexpr):
    """Places that units are read from in rows ``x``, and ``mask`` for them."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    WORD: tl.constexpr = tl.uint64 if TILE.ROWS.ITEM_BYTES == 4 else tl.uint32
    ITEM: tl.constexpr = WORD if TILE.READ_WORDS else DTYPE
    pair = first_pair(TILE) + TILE.PAIRS_PER_UNIT * tl.arange(0, TILE.UNITS)[None, None, :]
    p = places(x, channel(pair, TILE.READ_PAIRS, TILE), ITEM, TILE.VECTOR)
    return p, within(mask, TILE.PAIRS // TILE.PAIRS_PER_UNIT, TILE.UNITS)


@triton.jit
def writable(y, keep, TILE: tl.constexpr):
    """Places that results are written to in rows ``y``, joined two by two or not, and ``keep`` for them."""
    SIZE: tl.constexpr = TILE.UNITS * TILE.WRITE_ITEMS
    item = tl.arange(0, SIZE)[None, None, :]
    if TILE.WRITE_ITEMS == 2 and TILE.WRITE_PAIRS:
        place = 2 * first_pair(TILE) + item + TILE.OFFSET
        keep = within(keep, 2 * TILE.PAIRS, SIZE)
    else:
        place = channel(first_pair(TILE) + item, TILE.WRITE_PAIRS, TILE)
        keep = within(keep, TILE.PAIRS, SIZE)
    return places(y, place, stored(y), TILE.VECTOR * TILE.WRITE_ITEMS), keep


@triton.jit
def copy_channels(x, y, keep, FIRST: tl.constexpr, LAST: tl.constexpr, TILE: tl.constexpr):
    """Copy channels FIRST to LAST of a tile's rows."""
    ITEM: tl.constexpr = stored(x)
    N: tl.constexpr = 2 * TILE.VECTOR if TILE.WORDS else 1
    WIDTH: tl.constexpr = 2 * TILE.UNITS
    for begin in tl.range(FIRST, LAST, WIDTH):
        element = begin + tl.arange(0, WIDTH)[None, None, :]
        mask = keep & (element < LAST)
        value = tl.load(places(x, element, ITEM, N), mask=mask)
        tl.store(places(y, element, ITEM, N), value, mask=mask)


@triton.jit
def copy_rest(x, y, mask, TILE: tl.constexpr):
    """Copy the channels of a tile that do not turn: by the programs of a row's first part."""
    RANGES: tl.constexpr = len(TILE.COPIES)
    if first_pair(TILE) == 0:
        for r in tl.static_range(0, RANGES):
            copy_channels(x, y, mask, TILE.COPIES[r][0], TILE.COPIES[r][1], TILE)


@triton.jit
def copy_tokens(x, y, x_head, y_head, mask, HEADS: tl.constexpr, TILE: tl.constexpr):
    """Copy all channels of the tokens in ``mask``, one head at a time: they are few."""
    if first_pair(TILE) == 0:
        for head in tl.range(0, HEADS):
            copy_channels(x + head * x_head, y + head * y_head, mask, 0, TILE.HEAD_DIM, TILE)


@triton.jit
def rotate_heads(x, y, x_head, y_head, inside, rotated, any_left, even, odd, HEADS: tl.constexpr, BLOCK: tl.constexpr,
                 PACKED: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Rotate all heads of a program's tokens, BLOCK at a time. ``x``, ``y``: pointers to rows, [1, tokens, 1].

    ``inside``, ``rotated``: tokens of the call, and those of them that turn, [1, tokens, 1]; ``any_left``: whether
    there are others, which only PACKED ones may have.
    """
    REST: tl.constexpr = HEADS % BLOCK != 0
    CUT: tl.constexpr = TILE.CHUNK > TILE.PAIRS
    # out of place, tokens past the end read the last one again, instead of a mask
    LOAD: tl.constexpr = CUT or REST or (TILE.TAIL and TILE.ROWS.IN_PLACE)
    STORE: tl.constexpr = CUT or REST or TILE.TAIL or PACKED
    ITEMS: tl.constexpr = 2 if TILE.READ_WORDS else 1
    if TILE.ROWS.IN_PLACE:
        y = x
    if TILE.ROWS.DENSE_HEADS:
        x_head = TILE.HEAD_DIM
        y_head = TILE.HEAD_DIM
    if PACKED and not TILE.ROWS.IN_PLACE and any_left:
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
        if not TILE.ROWS.IN_PLACE:
            copy_rest(x, y, rotated & (head >= 0) & there, TILE)
        p = moved(p, BLOCK * (x_head // ITEMS), TILE.VECTOR)
        o = moved(o, BLOCK * y_head, TILE.VECTOR * TILE.WRITE_ITEMS)
        x += BLOCK * x_head
        y += BLOCK * y_head
