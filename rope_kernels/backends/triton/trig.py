# mypy: ignore-errors
"""Cosines and sines from positions on the device: powers of theta, phases in turns, two short polynomials.

Shapes: a tile is [heads, tokens, units]. Positions are [1, tokens, 1], what is loaded for pairs is [1, 1, units], and
all that is computed of both has the tile's shape, by :func:`unseen_zeros`, so that nothing is ever converted between
thread layouts. ``ANGLE`` is a :class:`~.plan.Angle`.
"""

import triton
import triton.language as tl

from .float_angle import float_cosine, float_sine, known, turns_of


@triton.jit
def growth(length, ntk):
    """Ratio of dynamic NTK's frequencies at ``length`` to the original ones, per step of the ladder: float64."""
    start, slope, power = ntk
    alpha = tl.maximum(length - start, 0).to(tl.float64) * slope + 1.0
    return tl.exp2(tl.log2(alpha) * power)


@triton.jit
def ladder(index, base, powers, step, COUNT: tl.constexpr, GROWS: tl.constexpr):
    """``base * (ratio * step) ** index`` for int32 ``index`` below COUNT; ``powers[b]`` is ``ratio ** (2 ** b)``.

    Bits 0 to 2 of an ascending index are constant per register, so their selects fold to constants. The higher bits
    differ only between lanes; their product is computed once per thread.
    """
    lane = tl.full(index.shape, 1.0, tl.float64) * base
    register = tl.full(index.shape, 1.0, tl.float64)
    last = powers[8]
    for b in tl.static_range(0, 12):  # rope_kernels.core.rotation.MAX_PAIRS has 12 bits
        if (1 << b) < COUNT:
            if b < 9:
                power = powers[b]
            else:
                last = last * last
                power = last
            if GROWS:
                power = power * step
                step = step * step
            factor = tl.where((index & (1 << b)) != 0, power, 1.0)
            if b < 3:
                register = register * factor
            else:
                lane = lane * factor
    return lane * register


@triton.jit
def ramped(index, f, ramp, ANGLE: tl.constexpr):
    """The clamped ramp, with ``where``: minimum and maximum take extra instructions for NaN."""
    start, per_index, per_frequency, lowest, highest = ramp
    share = tl.full(index.shape, 0.0, tl.float64) + start
    if ANGLE.RAMP != "frequency":  # two parts: one is the same in all registers, the other a constant
        share = share + (index & -8).to(tl.float64) * per_index
        share = share + (index & 7).to(tl.float64) * per_index
    if ANGLE.RAMP != "index":
        share = share + f * per_frequency
    share = tl.where(share > lowest, share, lowest)
    return tl.where(share < highest, share, highest)


@triton.jit
def frequency(index, listed, long_listed, is_long, step, base, powers, ramp, ANGLE: tl.constexpr):
    """Frequencies per position: uint64 fixed-point turns for phase "fixed", else float64 turns or radians.

    ``index``: in the ladder. ``listed``, ``long_listed``: of the table, see :func:`loaded`.
    """
    if ANGLE.TABLE_ROWS == 2:
        listed = tl.where(is_long, long_listed, listed)
    if ANGLE.LADDER:
        f = ladder(index, base, powers, step, ANGLE.LADDER, ANGLE.GROWS)
        if ANGLE.RAMP != "":
            f = f * ramped(index, f, ramp, ANGLE)
        if ANGLE.TABLE_ROWS:
            f = f * listed.to(tl.float64, bitcast=True)
        if ANGLE.WRAPPED:  # a turn or more per position, or a negative one; rounding may give a whole turn
            f = f - tl.floor(f * 5.421010862427522e-20) * 18446744073709551616.0
            f = tl.minimum(f, 18446744073709549568.0)
        if ANGLE.ROTATED is not None:
            f = tl.where(index < ANGLE.ROTATED, f, 0.0)
        result = f.to(tl.uint64) if ANGLE.PHASE == "fixed" else f
    elif ANGLE.PHASE == "fixed":
        result = listed.to(tl.uint64, bitcast=True)
    else:
        result = listed.to(tl.float64, bitcast=True)
    return result


@triton.jit
def phase(position, f, ANGLE: tl.constexpr):
    """``position`` times the :func:`frequency` ``f``: (uint32 phase, in 2**-32 turns, and the position).

    For phase "float32": a point of :mod:`.float_angle`.
    """
    if ANGLE.PHASE == "float32":
        shown = position.to(tl.float32) * f.to(tl.float32)
        bits = turns_of(shown)
    else:
        shown = position
        if ANGLE.PHASE == "fixed":  # modulo one turn exactly, negative positions by two's complement
            bits = (position.to(tl.int64).to(tl.uint64) * f) >> 32
        else:
            turns = position.to(tl.float64) * f
            bits = ((turns - tl.floor(turns)) * 4294967296.0).to(tl.uint64)
        bits = bits.to(tl.uint32)
    return bits, shown


@triton.jit
def reduced(point):
    """(radians in [-pi/2, pi/2], sign bit) of an :func:`angle`: half a turn is subtracted if that is nearer to 0.

    A phase cannot show that its position is NaN or infinite. The position minus itself does: it is NaN, and so are the
    radians.
    """
    bits, position = point
    x = (bits << 1).to(tl.int32, bitcast=True).to(tl.float32) * 7.314590396335798e-10  # pi / 2**32
    if position.dtype.is_floating():
        x += (position - position).to(tl.float32)
    return x, (bits + 0x40000000) & 0x80000000


@triton.jit
def sine(point):
    """fp32 sine of an :func:`angle`, to 1.5e-7; the cosine to 2.6e-7, and both together in 18 instructions."""
    x, sign = reduced(point)
    x2 = x * x
    s = 2.600054585855105e-06 * x2 - 0.00019806614727713168
    s = x + x * x2 * (-0.16666656732559204 + x2 * (0.008333017118275166 + x2 * s))
    return (s.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def cosine(point):
    """fp32 cosine of an :func:`angle`."""
    x, sign = reduced(point)
    x2 = x * x
    c = 2.4761886379565112e-05 - 2.6077103143506974e-07 * x2
    c = 1.0 + x2 * (-0.5 + x2 * (0.04166664183139801 + x2 * (-0.00138884037733078 + x2 * c)))
    return (c.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def unseen_zero():
    """A zero that LLVM recognises and Triton does not.

    Triton recomputes a value in the layout of its user only if few others use it, and else converts the result through
    shared memory. With this zero, Triton sees nothing that sine and cosine share, not even their indices; LLVM later
    finds and merges what they do.
    """
    return ((tl.program_id(0) | 1) == 0).to(tl.int32)


@triton.jit
def unseen_zeros(token, HEADS: tl.constexpr):
    """Such zeros, [heads, tokens, 1], for ``token`` [1, tokens, 1].

    From 3.8 on Triton recomputes less where that gives a thread more elements to compute, as it does for a tensor that
    is the same for all heads. What these zeros are added to has the shape of a tile, of which a thread has equally many
    elements in every layout; LLVM merges those of its heads.
    """
    return ((tl.arange(0, HEADS)[:, None, None] | token | 1) == 0).to(tl.int32)


@triton.jit
def loaded(pair, map_ptr, table_ptr, ANGLE: tl.constexpr):
    """(``pair``, its entry of the map, those of both rows of the table), [1, 1, units]; 0 for what there is not.

    ``map_ptr``: int32 per pair, axis of positions * 65536 + index in the ladder.
    ``table_ptr``: int64 (1 or 2 rows, TABLE_SIZE), the bits of finished frequencies, or of float64 multipliers if the
    kernel computes a ladder too.
    """
    entry = tl.load(map_ptr + pair) if ANGLE.MAPPED else 0
    listed = tl.load(table_ptr + pair) if ANGLE.TABLE_ROWS else 0
    long_listed = tl.load(table_ptr + ANGLE.TABLE_SIZE + pair) if ANGLE.TABLE_ROWS == 2 else 0
    return pair, entry, listed, long_listed


@triton.jit
def rounded(x, ANGLE: tl.constexpr):
    """fp32 ``x``, rounded to the dtype ROUNDED as a table of that dtype would be."""
    if ANGLE.ROUNDED == "bfloat16":
        x = x.to(tl.bfloat16).to(tl.float32)
    if ANGLE.ROUNDED == "float16":
        x = x.to(tl.float16).to(tl.float32)
    return x


@triton.jit
def angle(of_pair, zeros, how, ANGLE: tl.constexpr):
    """The :func:`phase` of pairs, of which ``of_pair`` was :func:`loaded`; ``zeros``: :func:`unseen_zeros`.

    ``how``: positions, [1, tokens, 1] per axis; what :func:`~.kernels.length_effects` found of both lengths; and the
    frequencies' constants: base, powers, ramp.
    """
    pair, entry, listed, long_listed = of_pair
    positions, is_long, step, from_long, from_step, base, powers, ramp = how
    entry += zeros
    listed += zeros
    long_listed += zeros
    index = entry & 0xFFFF if ANGLE.MAPPED_INDEX else pair + zeros
    position = positions[0]
    AXES: tl.constexpr = ANGLE.AXES
    for axis in tl.static_range(1, AXES):
        position = tl.where((entry >> 16) == axis, positions[axis], position)
    f = frequency(index, listed, long_listed, is_long, step, base, powers, ramp, ANGLE)
    bits, shown = phase(position, f, ANGLE)
    if ANGLE.FROM_LENGTHS:
        f = frequency(index, listed, long_listed, from_long, from_step, base, powers, ramp, ANGLE)
        other_bits, other = phase(position, f, ANGLE)
        bits = bits - other_bits
        if ANGLE.PHASE == "float32":
            shown = known(shown, other)
    return bits, shown


@triton.jit
def cos_sin(of_pair, zeros, how, scaling, ANGLE: tl.constexpr):
    """fp32 (cos, sin) of :func:`angle`; scaled, rounded."""
    point = angle(of_pair, zeros, how, ANGLE)
    s = float_sine(point, ANGLE.FROM_LENGTHS > 0) if ANGLE.PHASE == "float32" else sine(point)
    point = angle(of_pair, zeros + unseen_zero(), how, ANGLE)
    c = float_cosine(point) if ANGLE.PHASE == "float32" else cosine(point)
    if ANGLE.SCALINGS:
        s = s * scaling
        c = c * scaling
    return rounded(c, ANGLE), rounded(s, ANGLE)
