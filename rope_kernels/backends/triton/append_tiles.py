# mypy: ignore-errors
"""Store the rows of one tile in a paged KV cache: where they go, k rotated, and v. ``TILE``: see :mod:`.tiles`.

Rows that are not stored are masked: their addresses may be anywhere.
"""

import triton
import triton.language as tl

from .norm_tiles import for_heads, norm_factor, norm_heads, normed_rest, read_rest, rest_places, write_rest
from .quantised import coded, head_scales
from .tiles import copy_channels, rotate_heads, stored


@triton.jit
def slots_of(slots_ptr, batch, token, known, tokens_per_batch, num_rows, TILE: tl.constexpr):
    """int64 slot of each token, [1, tokens, 1]; -1 without one of the ``num_rows``, and where not ``known``."""
    row = token
    if TILE.MEMORY.BATCHED:
        row += batch * tokens_per_batch
    return tl.load(slots_ptr + row, mask=known & (row < num_rows), other=-1).to(tl.int64)


@triton.jit
def entries(slot, num_slots, page_size, pages_per_slot):
    """(page of each token, its place there, whether it is one of the cache's ``num_slots``), [1, tokens, 1]."""
    # exact: below 2**51 the product is never within its error of the next integer
    page = ((slot.to(tl.float64) + 0.5) * pages_per_slot).to(tl.int64)
    return page, slot - page * page_size, (slot >= 0) & (slot < num_slots)


@triton.jit
def cache_rows(ptr, page, entry, page_stride, entry_stride):
    """Pointers to the rows of tokens, [1, tokens, 1]."""
    return ptr + (page * page_stride + entry * entry_stride)


@triton.jit
def store_heads(x, y, x_head, y_head, inside, known, even, odd, weight, offset, eps, scale, scale_head,
                HEADS: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, CODE: tl.constexpr,
                TILE: tl.constexpr):  # fmt: skip
    """Norm, rotate and store all heads of a program's tokens; the arguments are those of :func:`norm_heads`.

    ``known``: the tokens to store.
    """
    if NORM is None and CODE == "":
        rotate_heads(x, y, x_head, y_head, inside, known, False, even, odd, HEADS, BLOCK, True, TILE)
    else:
        norm_heads(x, y, x_head, y_head, inside, known, False, even, odd, weight, offset, eps, HEADS, BLOCK, True, NORM,
                   TILE, scale, scale_head, CODE)  # fmt: skip


@triton.jit
def store_values(x, y, x_head, y_head, known, weight, offset, eps, scale, scale_head, HEADS: tl.constexpr,
                 BLOCK: tl.constexpr, NORM: tl.constexpr, CODE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Norm, or not, and store all heads of a program's tokens, which are not rotated: TILE has no pairs."""
    head = tl.arange(0, BLOCK)[:, None, None]
    if NORM is not None and NORM.WEIGHTED:
        weight = for_heads(weight, BLOCK, TILE)
    if TILE.MEMORY.DENSE_HEADS:
        x_head = TILE.HEAD_DIM
        y_head = TILE.HEAD_DIM
    x += head * x_head
    y += head * y_head
    for first in tl.range(0, HEADS, BLOCK):
        there = first + head < HEADS
        if NORM is None and CODE == "":
            copy_values(x, y, known & there, TILE)
        else:
            scales = head_scales(scale, first + head, scale_head, there, CODE)
            store_value_tile(x, y, known & there, weight, offset, eps, scales, BLOCK, NORM, CODE, TILE)
        x += BLOCK * x_head
        y += BLOCK * y_head


@triton.jit
def copy_values(x, y, known, TILE: tl.constexpr):
    """Copy all channels of a tile's rows; of rows of a few parts all loads come before the stores."""
    PARTS: tl.constexpr = len(TILE.RESTS)
    if PARTS > 4:
        copy_channels(x, y, known, 0, TILE.HEAD_DIM, TILE)
    else:
        ITEM: tl.constexpr = stored(x.dtype.element_ty)
        N: tl.constexpr = 2 if TILE.WORDS else 1
        parts = ()
        for r in tl.static_range(0, PARTS):
            p, live = rest_places(x, TILE.RESTS[r][0], TILE.RESTS[r][1], ITEM, N * TILE.VECTOR, 1, N * TILE.UNITS)
            parts += (tl.load(p, mask=known & live),)
        for r in tl.static_range(0, PARTS):
            o, live = rest_places(y, TILE.RESTS[r][0], TILE.RESTS[r][1], ITEM, N * TILE.VECTOR, 1, N * TILE.UNITS)
            tl.store(o, parts[r], mask=known & live)


@triton.jit
def store_value_tile(x, y, known, weight, offset, eps, scale, BLOCK: tl.constexpr, NORM: tl.constexpr,
                     CODE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """:func:`store_values` of BLOCK heads."""
    PARTS: tl.constexpr = len(TILE.RESTS)
    TOGETHER: tl.constexpr = NORM is not None or PARTS <= 4
    factor = 1.0
    rests = ()
    if TOGETHER:
        for r in tl.static_range(0, PARTS):
            rests += (read_rest(x, known, r, TILE),)
    if NORM is not None:
        factor = norm_factor(0.0, rests, eps, TILE)
    for r in tl.static_range(0, PARTS):
        rest = rests[r] if TOGETHER else read_rest(x, known, r, TILE)
        first, second = normed_rest(rest, factor, weight, offset, r, NORM, TILE)
        write_rest(y, known, coded(first, scale, CODE), coded(second, scale, CODE), r, BLOCK, TILE)
