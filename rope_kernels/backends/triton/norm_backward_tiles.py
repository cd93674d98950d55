# mypy: ignore-errors
"""The way back through norm and rotation, for the rows of one tile.

``TILE`` is that of the forward call and ``BACK`` the same the other way round: gradients are read where the forward
call writes, and written where it reads. With z the row that is normed, s = 1 / rms(z), u the weight's factors and
h = u s times the gradient of u s z, the gradient of z is h - z s^2 mean(h z).
"""

import triton
import triton.language as tl

from .norm_tiles import (
    factors,
    for_heads,
    read_pairs,
    read_rest,
    rest_factors,
    sum_of_squares,
    write_pairs,
    write_rest,
)
from .tiles import copy_tokens, moved, places, readable, rotate, writable


@triton.jit
def rotate_back(first, second, cs):
    """The adjoint of :func:`rotate`."""
    return first * cs[0] + second * cs[3], second * cs[2] - first * cs[1]


@triton.jit
def products(a, b, c, d, x, y, z, w, TWO: tl.constexpr):
    """The sum of products of two units: of their TWO pairs, or of their one pair."""
    total = a * x + b * y
    if TWO:
        total += c * z + d * w
    return total


@triton.jit
def backward_tile(p, g, o, x, grad, y, mask, keep, grad_mask, row_mask, even, odd, weight, offset, eps, us, sums,
                  rest_sums, MASKED: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr,
                  BACK: tl.constexpr):  # fmt: skip
    """The gradients of BLOCK heads, at places ``o`` of rows ``y``, and the sums with these heads in them.

    ``p``: places of the forward call's input in rows ``x``; ``g``: of its output's gradient in rows ``grad``;
    ``mask``, ``grad_mask``, ``keep``, ``row_mask``: where to load from both, where to store, and the same of rows.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    PARTS: tl.constexpr = len(TILE.RESTS)
    TWO: tl.constexpr = TILE.PAIRS_PER_UNIT == 2
    a, b, c, d = read_pairs(g, grad_mask, MASKED, BACK.READ_PAIRS, DTYPE, BACK)
    z0, z1, z2, z3 = read_pairs(p, mask, MASKED, TILE.READ_PAIRS, DTYPE, TILE)
    rests = ()
    for r in tl.static_range(0, PARTS):
        rests += (read_rest(x, row_mask, r, TILE) + read_rest(grad, row_mask, r, TILE),)
    if NORM.AFTER:
        z0, z1 = rotate(z0, z1, even)
        if TWO:
            z2, z3 = rotate(z2, z3, odd)
    else:
        a, b = rotate_back(a, b, even)
        if TWO:
            c, d = rotate_back(c, d, odd)
    squares = sum_of_squares(z0, z1, z2, z3, TWO)
    for r in tl.static_range(0, PARTS):
        squares += rests[r][0] * rests[r][0]
        if TILE.WORDS:
            squares += rests[r][1] * rests[r][1]
    scale = tl.rsqrt(tl.sum(squares, axis=2, keep_dims=True) * (1.0 / TILE.HEAD_DIM) + eps)
    if MASKED:
        scale = tl.where(row_mask, scale, 0.0)  # without rows and eps, the factor is infinite
    a, b, c, d = a * scale, b * scale, c * scale, d * scale
    if NORM.WEIGHTED:
        sums = (sums[0] + a * z0, sums[1] + b * z1, sums[2] + c * z2, sums[3] + d * z3)
        a, b, c, d = a * us[0], b * us[1], c * us[2], d * us[3]
    dots = products(a, b, c, d, z0, z1, z2, z3, TWO)
    parts = ()
    new_sums = ()
    for r in tl.static_range(0, PARTS):
        z, w, h, i = rests[r][0], rests[r][1], rests[r][2] * scale, rests[r][3] * scale
        if NORM.WEIGHTED:
            new_sums += ((rest_sums[r][0] + h * z, rest_sums[r][1] + i * w),)
            u, v = rest_factors(weight, offset, r, NORM, TILE)
            h, i = h * u, i * v
        dots += h * z
        if TILE.WORDS:
            dots += i * w
        parts += ((z, w, h, i),)
    share = tl.sum(dots, axis=2, keep_dims=True) * (1.0 / TILE.HEAD_DIM) * scale * scale
    a, b, c, d = a - z0 * share, b - z1 * share, c - z2 * share, d - z3 * share
    if NORM.AFTER:
        a, b = rotate_back(a, b, even)
        if TWO:
            c, d = rotate_back(c, d, odd)
    write_pairs(o, keep, a, b, c, d, MASKED, BACK.WRITE_PAIRS, DTYPE, BLOCK, BACK)
    for r in tl.static_range(0, PARTS):
        z, w, h, i = parts[r]
        write_rest(y, row_mask, h - z * share, i - w * share, r, BLOCK, TILE)
    return sums, new_sums


@triton.jit
def store_sums(partials, sums, rest_sums, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """A program's parts of the weight's gradient, in float32.

    There is a row per token and head in flight, in which a plane of UNITS follows another: the members of the units'
    pairs, and the channels of each part of what is not rotated. So a thread stores what it has.
    """
    PARTS: tl.constexpr = len(TILE.RESTS)
    MEMBERS: tl.constexpr = 2 * TILE.PAIRS_PER_UNIT
    CHANNELS: tl.constexpr = 2 if TILE.WORDS else 1
    head = tl.arange(0, BLOCK)[:, None, None]
    token = tl.program_id(0) * TILE.TOKENS + tl.arange(0, TILE.TOKENS)[None, :, None]
    row = partials + (token.to(tl.int64) * BLOCK + head) * (TILE.PLANES * TILE.UNITS)
    unit = tl.arange(0, TILE.UNITS)[None, None, :]
    for i in tl.static_range(0, MEMBERS):
        tl.store(places(row, unit + i * TILE.UNITS, tl.float32, TILE.VECTOR), sums[i])
    for r in tl.static_range(0, PARTS):
        for i in tl.static_range(0, CHANNELS):
            plane = unit + (MEMBERS + CHANNELS * r + i) * TILE.UNITS
            tl.store(places(row, plane, tl.float32, TILE.VECTOR), rest_sums[r][i])


@triton.jit
def backward_heads(x, y, grad, x_head, y_head, grad_head, inside, rotated, any_past_end, even, odd, weight, offset, eps,
                   partials, HEADS: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, NORM: tl.constexpr,
                   TILE: tl.constexpr, BACK: tl.constexpr):  # fmt: skip
    """The gradients of all heads of a program's tokens. ``x``, ``y``, ``grad``: pointers to rows, [1, tokens, 1]."""
    REST: tl.constexpr = HEADS % BLOCK != 0
    MASKED: tl.constexpr = TILE.CHUNK > TILE.PAIRS or REST or TILE.TAIL or PACKED
    PARTS: tl.constexpr = len(TILE.RESTS)
    ITEMS: tl.constexpr = 2 if TILE.READ_WORDS else 1
    GRAD_ITEMS: tl.constexpr = 2 if BACK.READ_WORDS else 1
    UNROLLED: tl.constexpr = 1 if TILE.PAIRS_PER_UNIT == 2 else 4  # a head of pairs is half as much work per thread
    if TILE.MEMORY.DENSE_HEADS:
        x_head = TILE.HEAD_DIM
        y_head = TILE.HEAD_DIM
        grad_head = TILE.HEAD_DIM
    if PACKED and any_past_end:
        copy_tokens(grad, y, grad_head, y_head, inside & (rotated == 0), HEADS, TILE)
    us = (0.0, 0.0, 0.0, 0.0)
    if NORM.WEIGHTED:
        weight = for_heads(weight, BLOCK, TILE)
        us = factors(weight, offset, TILE.WRITE_PAIRS if NORM.AFTER else TILE.READ_PAIRS, NORM, TILE)
    head = tl.arange(0, BLOCK)[:, None, None]
    x += head * x_head
    y += head * y_head
    grad += head * grad_head
    p, mask = readable(x, rotated & (head >= 0), TILE)
    g, grad_mask = readable(grad, rotated & (head >= 0), BACK)
    o, keep = writable(y, rotated & (head >= 0), BACK)
    zero = tl.full([BLOCK, TILE.TOKENS, TILE.UNITS], 0.0, tl.float32)
    sums = (zero, zero, zero, zero)
    rest_sums = ()
    if NORM.WEIGHTED:
        for _ in tl.static_range(0, PARTS):
            rest_sums += ((zero, zero),)
    for first in tl.range(0, HEADS, BLOCK, loop_unroll_factor=UNROLLED):
        there = (head >= 0) & (first + head < HEADS) if REST else head >= 0
        sums, rest_sums = backward_tile(
            p, g, o, x, grad, y, mask & there, keep & there, grad_mask & there, rotated & there, even, odd, weight,
            offset, eps, us, sums, rest_sums, MASKED, BLOCK, NORM, TILE, BACK,
        )  # fmt: skip
        p = moved(p, BLOCK * (x_head // ITEMS), TILE.VECTOR)
        g = moved(g, BLOCK * (grad_head // GRAD_ITEMS), TILE.VECTOR)
        o = moved(o, BLOCK * y_head, TILE.VECTOR * BACK.WRITE_ITEMS)
        x += BLOCK * x_head
        y += BLOCK * y_head
        grad += BLOCK * grad_head
    if NORM.WEIGHTED:
        store_sums(partials, sums, rest_sums, BLOCK, TILE)
