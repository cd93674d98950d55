# mypy: ignore-errors
"""Cosines and sines of fp32 angles in radians, in integers: csrc/core/float_angle.h again, to the same bits.

A *point* is an angle twice, as uint64 in 2**-64 turns modulo one and as fp32 radians.
"""

import triton
import triton.language as tl


@triton.jit
def high_product(a, b):
    """Upper 32 bits of the product of two uint32."""
    return ((a.to(tl.uint64) * b) >> 32).to(tl.uint32)


@triton.jit
def turns_of(radians):
    """uint64 turns of fp32 ``radians``, off by 2 at most: a window of 96 bits moves over those of 1 / (2 pi)."""
    bits = radians.to(tl.uint32, bitcast=True)
    place = ((bits >> 23) & 0xFF).to(tl.int32) - 126  # of the window, once the angle is 0.5 or more
    mantissa = ((bits & 0x7FFFFF) | 0x800000).to(tl.uint64)
    # 1 / (2 pi) behind 24 zeros
    w0 = tl.full(bits.shape, 0x00000028BE60DB93, tl.uint64)
    w1 = tl.full(bits.shape, 0x91054A7F09D5F47D, tl.uint64)
    w2 = tl.full(bits.shape, 0x4D377036D8A5664F, tl.uint64)
    w3 = tl.full(bits.shape, 0x10E4107F9458EAF7, tl.uint64)
    first = tl.where(place < 64, w0, tl.where(place < 128, w1, w2))
    second = tl.where(place < 64, w1, tl.where(place < 128, w2, w3))
    third = tl.where(place < 64, w2, w3)
    left = tl.where(place < 0, 0, place & 63).to(tl.uint64)
    right = 63 - left
    window = (first << left) | ((second >> 1) >> right)
    rest = ((second << left) | ((third >> 1) >> right)) >> 32
    turns = window * mantissa + ((rest * mantissa) >> 32)
    turns = turns >> tl.where(place < 0, tl.minimum(-place, 63), 0).to(tl.uint64)
    return tl.where((bits >> 31) != 0, 0 - turns, turns)


@triton.jit
def polynomials(turns):
    """(sine, cosine, quarters): fp32 of what is left of ``turns`` without whole quarters; these are in the top bits."""
    quarters = turns + 0x2000000000000000
    rest = (quarters & 0x3FFFFFFFFFFFFFFF) - 0x2000000000000000
    sign = rest >> 63
    magnitude = rest ^ (0 - sign)  # of a negative one, one less than that: at most 2**61 - 1
    share = (magnitude >> 29).to(tl.uint32)
    z = high_product(share, share)
    slope = 10696157 - high_product(z, 157077 - high_product(z, 1327))
    slope = 3373259426 - high_product(z, 346799333 - high_product(z, slope))
    fall = 68093864 - high_product(z, 1399993 - high_product(z, 15213))
    fall = high_product(z, 1324675878 - high_product(z, fall))
    product = (magnitude >> 32) * slope + high_product(magnitude.to(tl.uint32), slope)
    s = product.to(tl.float32) * 4.336808689942018e-19  # 2**-61
    c = (0 - tl.maximum(fall, 1)).to(tl.float32) * 2.3283064365386963e-10  # 1 - fall, in 2**-32
    return tl.where(sign != 0, -s, s), c, quarters


@triton.jit
def known(value, radians):
    """``value``, or NaN for an angle that is NaN or infinite."""
    return tl.where(tl.abs(radians) < float("inf"), value, float("nan"))  # a difference could be fused with a product


@triton.jit
def float_sine(point, SUBTRACTED: tl.constexpr):
    """fp32 sine of a point, one rounding; NaN if the radians are NaN or infinite.

    Next to 0 the radians have digits left that the turns have not, unless other turns were SUBTRACTED from them.
    """
    turns, radians = point
    s, c, quarters = polynomials(turns)
    s = tl.where(((quarters >> 62) & 1) != 0, c, s)
    s = tl.where((quarters >> 63) != 0, -s, s)
    if not SUBTRACTED:
        s = tl.where(tl.abs(radians) < 6.103515625e-05, radians, s)
    return known(s, radians)


@triton.jit
def float_cosine(point):
    """fp32 cosine of a point."""
    turns, radians = point
    s, c, quarters = polynomials(turns)
    c = tl.where(((quarters >> 62) & 1) != 0, -s, c)
    return known(tl.where((quarters >> 63) != 0, -c, c), radians)
