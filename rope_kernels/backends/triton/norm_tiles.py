# mypy: ignore-errors
"""Norm and rotate the rows of one tile. ``NORM`` is a :class:`~.plan.RowNorm`; see :mod:`.tiles` for the rest.

A row is held by threads of one warp, and its squares are summed in the same order in every tile: its result does not
depend on the shape of the launch.
"""

import triton
import triton.language as tl

from .quantised import coded, head_scales
from .tiles import (
    channel,
    copy_tokens,
    joined,
    moved,
    places,
    readable,
    rotate,
    store,
    stored,
    unpack,
    writable,
)


@triton.jit
def load_or_zero(pointers, mask, MASKED: tl.constexpr):
    """Load, zeros where a mask that there is only if MASKED says so: they add nothing to a sum of squares."""
    return tl.load(pointers, mask=mask, other=0) if MASKED else tl.load(pointers)


@triton.jit
def read_pairs(p, mask, MASKED: tl.constexpr, READ_PAIRS: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """fp32 (first, second) member of a unit's first pair, and those of its second, if it has one."""
    if TILE.PAIRS_PER_UNIT == 2:
        a, c = unpack(load_or_zero(p, mask, MASKED), DTYPE)
        b, d = unpack(load_or_zero(p + TILE.DISTANCE // 2, mask, MASKED), DTYPE)
    else:
        if TILE.WORDS and READ_PAIRS:
            a, b = unpack(load_or_zero(p, mask, MASKED), DTYPE)
        else:
            a = load_or_zero(p, mask, MASKED).to(tl.float32)
            b = load_or_zero(p + (1 if READ_PAIRS else TILE.DISTANCE), mask, MASKED).to(tl.float32)
        c, d = a, b
    return a, b, c, d


@triton.jit
def write_pairs(o, keep, a, b, c, d, MASKED: tl.constexpr, WRITE_PAIRS: tl.constexpr, DTYPE: tl.constexpr,
                BLOCK: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Round the members of a unit's pairs, in the order of :func:`read_pairs`, and store them."""
    if TILE.PAIRS_PER_UNIT == 2:
        store(o, joined(a, c, DTYPE, BLOCK, TILE), keep, MASKED)
        store(o + TILE.DISTANCE, joined(b, d, DTYPE, BLOCK, TILE), keep, MASKED)
    elif TILE.WORDS and WRITE_PAIRS:
        store(o, joined(a, b, DTYPE, BLOCK, TILE), keep, MASKED)
    else:
        store(o, a.to(DTYPE), keep, MASKED)
        store(o + (1 if WRITE_PAIRS else TILE.DISTANCE), b.to(DTYPE), keep, MASKED)


@triton.jit
def for_heads(weight, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """``weight``, the pointer that all rows share, or one for each head of a tile of one token, [heads, 1, 1].

    What is loaded for all rows takes the layout of a tile only if it has fewer elements than a program has threads, and
    else one of its own. What is loaded for each row has the tile's shape, and with it the layout.
    """
    return weight + tl.arange(0, BLOCK)[:, None, None] * 0 if 32 * TILE.WARPS <= TILE.UNITS else weight


@triton.jit
def factors(weight, offset, NEIGHBOURS: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr):
    """What a norm multiplies the members of a unit's pairs by, in the order of :func:`read_pairs`.

    [1, 1, units], or [heads, 1, units] if :func:`for_heads` gave each head a pointer.
    """
    DTYPE: tl.constexpr = weight.dtype.element_ty
    TWO: tl.constexpr = TILE.PAIRS_PER_UNIT == 2
    LAST: tl.constexpr = TILE.PAIRS // TILE.PAIRS_PER_UNIT
    CUT: tl.constexpr = LAST < TILE.UNITS
    unit = tl.arange(0, TILE.UNITS)[None, None, :]
    live = unit < LAST
    place = channel(TILE.PAIRS_PER_UNIT * unit, NEIGHBOURS, TILE)
    if NORM.WEIGHT_WORDS and (TWO or NEIGHBOURS):
        WORD: tl.constexpr = tl.uint64 if tl.float32 == DTYPE else tl.uint32
        p = places(weight, place, WORD, NORM.WEIGHT_WORDS)
        a, c = unpack(load_or_zero(p, live, CUT), DTYPE)
        if TWO:
            b, d = unpack(load_or_zero(p + TILE.DISTANCE // 2, live, CUT), DTYPE)
        else:
            b, d = c, c
    else:
        other = place + (1 if NEIGHBOURS else TILE.DISTANCE)
        a = load_or_zero(weight + place, live, CUT).to(tl.float32)
        b = load_or_zero(weight + other, live, CUT).to(tl.float32)
        c, d = a, b
        if TWO:
            c = load_or_zero(weight + place + 1, live, CUT).to(tl.float32)
            d = load_or_zero(weight + other + 1, live, CUT).to(tl.float32)
    if NORM.OFFSET:
        a, b, c, d = a + offset, b + offset, c + offset, d + offset
    return a, b, c, d


@triton.jit
def folded(cs, first, second, tile):
    """``cs`` of :func:`rotate` that also multiplies the members by factors before it rotates them.

    Triton is to multiply in the layout of ``tile``, any loaded fp32 values, and not to convert four products of each
    cosine and sine to it. So the factors depend on these values in a way that LLVM recognises as none.
    """
    never = (tile.to(tl.uint32, bitcast=True) | 1) == 0
    first = tl.where(never, 0.0, first)
    second = tl.where(never, 0.0, second)
    return cs[0] * first, cs[1] * second, cs[2] * second, cs[3] * first


@triton.jit
def rest_places(x, BEGIN: tl.constexpr, END: tl.constexpr, ITEM: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr,
                SIZE: tl.constexpr):  # fmt: skip
    """(places of SIZE items from channel BEGIN of rows ``x`` on, one per STEP channels; which are before END)."""
    element = BEGIN + STEP * tl.arange(0, SIZE)[None, None, :]
    return places(x, element, ITEM, COUNT), element < END


@triton.jit
def read_rest(x, mask, R: tl.constexpr, TILE: tl.constexpr):
    """fp32 (first, second) channel of the units of part R of what is not rotated; twice the one if units have one."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    WORD: tl.constexpr = tl.uint64 if TILE.MEMORY.ITEM_BYTES == 4 else tl.uint32
    ITEM: tl.constexpr = WORD if TILE.WORDS else DTYPE
    STEP: tl.constexpr = 2 if TILE.WORDS else 1
    p, live = rest_places(x, TILE.RESTS[R][0], TILE.RESTS[R][1], ITEM, TILE.VECTOR, STEP, TILE.UNITS)
    item = tl.load(p, mask=mask & live, other=0)
    if TILE.WORDS:
        first, second = unpack(item, DTYPE)
    else:
        first = item.to(tl.float32)
        second = first
    return first, second


@triton.jit
def rest_factors(weight, offset, R: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr):
    """What a norm multiplies the channels of :func:`read_rest` by, in the shape of :func:`factors`."""
    DTYPE: tl.constexpr = weight.dtype.element_ty
    STEP: tl.constexpr = 2 if TILE.WORDS else 1
    BEGIN: tl.constexpr = TILE.RESTS[R][0]
    END: tl.constexpr = TILE.RESTS[R][1]
    if TILE.WORDS and NORM.WEIGHT_WORDS:
        WORD: tl.constexpr = tl.uint64 if tl.float32 == DTYPE else tl.uint32
        p, live = rest_places(weight, BEGIN, END, WORD, NORM.WEIGHT_WORDS, STEP, TILE.UNITS)
        first, second = unpack(tl.load(p, mask=live, other=0), DTYPE)
    else:
        p, live = rest_places(weight, BEGIN, END, DTYPE, 1, STEP, TILE.UNITS)
        first = tl.load(p, mask=live, other=0).to(tl.float32)
        second = tl.load(p + (STEP - 1), mask=live, other=0).to(tl.float32)
    if NORM.OFFSET:
        first, second = first + offset, second + offset
    return first, second


@triton.jit
def write_rest(y, keep, first, second, R: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Round and store the channels of :func:`read_rest`."""
    DTYPE: tl.constexpr = y.dtype.element_ty
    ITEM: tl.constexpr = stored(DTYPE)
    ITEMS: tl.constexpr = 2 if TILE.WORDS else 1
    o, live = rest_places(y, TILE.RESTS[R][0], TILE.RESTS[R][1], ITEM, ITEMS * TILE.VECTOR, 1, ITEMS * TILE.UNITS)
    if TILE.WORDS:
        store(o, joined(first, second, DTYPE, BLOCK, TILE), keep & live, True)
    else:
        store(o, first.to(DTYPE), keep & live, True)


@triton.jit
def turned(a, b, c, d, rests, even, odd, us, eps, NORM: tl.constexpr, TILE: tl.constexpr):
    """A row's pairs, rotated, in the order of :func:`read_pairs`, and what its norm multiplies all channels by; 1
    without a norm."""
    TWO: tl.constexpr = TILE.PAIRS_PER_UNIT == 2
    factor = 1.0
    if NORM is not None and not NORM.AFTER:
        squares = sum_of_squares(a, b, c, d, TWO)
        if NORM.WEIGHTED:
            even = folded(even, us[0], us[1], a)
            odd = folded(odd, us[2], us[3], a)
    a, b = rotate(a, b, even)
    if TWO:
        c, d = rotate(c, d, odd)
    if NORM is not None:
        if NORM.AFTER:
            squares = sum_of_squares(a, b, c, d, TWO)
        factor = norm_factor(squares, rests, eps, TILE)
    return a, b, c, d, factor


@triton.jit
def norm_factor(squares, rests, eps, TILE: tl.constexpr):
    """1 over the root of a row's mean square. ``squares``: of its pairs; ``rests``: the other channels."""
    PARTS: tl.constexpr = len(TILE.RESTS)
    for r in tl.static_range(0, PARTS):
        squares += rests[r][0] * rests[r][0]
        if TILE.WORDS:
            squares += rests[r][1] * rests[r][1]
    return tl.rsqrt(tl.sum(squares, axis=2, keep_dims=True) * (1.0 / TILE.HEAD_DIM) + eps)


@triton.jit
def normed_rest(rest, factor, weight, offset, R: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr):
    """The channels of :func:`read_rest`, normed if NORM says so."""
    first, second = rest
    if NORM is not None:
        first, second = first * factor, second * factor
        if NORM.WEIGHTED:
            u, v = rest_factors(weight, offset, R, NORM, TILE)
            first, second = first * u, second * v
    return first, second


@triton.jit
def norm_tile(p, o, x, y, mask, keep, row_mask, row_keep, even, odd, weight, offset, eps, us, scale, LOAD: tl.constexpr,
              STORE: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, CODE: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    """Norm and rotate BLOCK heads from places ``p`` of rows ``x`` to places ``o`` of rows ``y``.

    ``mask``, ``keep``: where to load and to store; ``row_mask``, ``row_keep``: the same without a unit's place.
    ``us``: the :func:`factors`. ``scale``, CODE: see :func:`coded`.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    TO: tl.constexpr = y.dtype.element_ty
    PARTS: tl.constexpr = len(TILE.RESTS)
    a, b, c, d = read_pairs(p, mask, LOAD, TILE.READ_PAIRS, DTYPE, TILE)
    rests = ()
    for r in tl.static_range(0, PARTS):
        rests += (read_rest(x, row_mask, r, TILE),)
    a, b, c, d, factor = turned(a, b, c, d, rests, even, odd, us, eps, NORM, TILE)
    if TILE.MEMORY.IN_PLACE and TILE.READ_PAIRS != TILE.WRITE_PAIRS:
        tl.debug_barrier()  # threads of a row write where others of them read
    if NORM is not None:
        a, b, c, d = a * factor, b * factor, c * factor, d * factor
        if NORM.AFTER and NORM.WEIGHTED:
            a, b, c, d = a * us[0], b * us[1], c * us[2], d * us[3]
    a, b, c, d = coded(a, scale, CODE), coded(b, scale, CODE), coded(c, scale, CODE), coded(d, scale, CODE)
    write_pairs(o, keep, a, b, c, d, STORE, TILE.WRITE_PAIRS, TO, BLOCK, TILE)
    for r in tl.static_range(0, PARTS):
        first, second = normed_rest(rests[r], factor, weight, offset, r, NORM, TILE)
        write_rest(y, row_keep, coded(first, scale, CODE), coded(second, scale, CODE), r, BLOCK, TILE)


@triton.jit
def sum_of_squares(a, b, c, d, TWO: tl.constexpr):
    """Of the members of a unit's TWO pairs, or of its one pair."""
    squares = a * a + b * b
    if TWO:
        squares += c * c + d * d
    return squares


@triton.jit
def norm_heads(x, y, x_head, y_head, inside, rotated, any_past_end, even, odd, weight, offset, eps,
               HEADS: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr,
               scale, scale_head, CODE: tl.constexpr):  # fmt: skip
    """:func:`rotate_heads` with a norm. ``weight``: pointer to (head_dim,), to which ``offset`` is added.

    Or into numbers of 8 bits, with or without a norm: see :func:`head_scales` and :func:`.quantised.coded`.
    """
    REST: tl.constexpr = HEADS % BLOCK != 0
    CUT: tl.constexpr = TILE.CHUNK > TILE.PAIRS
    LOAD: tl.constexpr = CUT or REST or (TILE.TAIL and TILE.MEMORY.IN_PLACE)
    STORE: tl.constexpr = CUT or REST or TILE.TAIL or PACKED
    ITEMS: tl.constexpr = 2 if TILE.READ_WORDS else 1
    if TILE.MEMORY.DENSE_HEADS:
        x_head = TILE.HEAD_DIM
        y_head = TILE.HEAD_DIM
    if PACKED and not TILE.MEMORY.IN_PLACE and any_past_end:
        copy_tokens(x, y, x_head, y_head, inside & (rotated == 0), HEADS, TILE)
    us = (0.0, 0.0, 0.0, 0.0)
    if NORM is not None and NORM.WEIGHTED:
        weight = for_heads(weight, BLOCK, TILE)
        us = factors(weight, offset, TILE.WRITE_PAIRS if NORM.AFTER else TILE.READ_PAIRS, NORM, TILE)
    head = tl.arange(0, BLOCK)[:, None, None]
    x += head * x_head
    y += head * y_head
    p, mask = readable(x, inside & (head >= 0), TILE)
    o, keep = writable(y, rotated & (head >= 0), TILE)
    for first in tl.range(0, HEADS, BLOCK):
        there = (head >= 0) & (first + head < HEADS) if REST else head >= 0
        scales = head_scales(scale, first + head, scale_head, there, CODE)
        norm_tile(p, o, x, y, mask & there, keep & there, inside & there, rotated & there, even, odd, weight, offset,
                  eps, us, scales, LOAD, STORE, BLOCK, NORM, CODE, TILE)  # fmt: skip
        p = moved(p, BLOCK * (x_head // ITEMS), TILE.VECTOR)
        o = moved(o, BLOCK * y_head, TILE.VECTOR * TILE.WRITE_ITEMS)
        x += BLOCK * x_head
        y += BLOCK * y_head
