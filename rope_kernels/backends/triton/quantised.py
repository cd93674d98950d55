# mypy: ignore-errors
"""Rounds fp32 to the 8-bit numbers of a KV cache: to nearest even, clamped to finite numbers.

By integers, on every GPU in the same way: Triton's own conversion to float8 rounds twice on some GPUs and does not
exist on others.
"""

import triton
import triton.language as tl


@triton.jit
def float8(value, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MOST: tl.constexpr):
    """uint32 bits of the nearest float8 with MANTISSA bits, whose exponents have a BIAS. NaN has all bits but the sign.

    ``MOST``: bits of the largest number, in fp32.
    """
    SHIFT: tl.constexpr = 23 - MANTISSA
    REBIAS: tl.constexpr = (127 - BIAS) << 23
    # a number whose last place is the smallest denormal: adding it rounds at that place
    LAST_PLACE: tl.constexpr = (127 + 24 - BIAS - MANTISSA) << 23
    bits = value.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    magnitude = bits & 0x7FFFFFFF
    finite = tl.minimum(magnitude, MOST)
    normal = (finite - REBIAS + ((1 << (SHIFT - 1)) - 1) + ((finite >> SHIFT) & 1)) >> SHIFT
    last_place = (finite * 0 + LAST_PLACE).to(tl.float32, bitcast=True)
    denormal = (finite.to(tl.float32, bitcast=True) + last_place).to(tl.uint32, bitcast=True) - LAST_PLACE
    code = tl.where(finite >= REBIAS + (1 << 23), normal, denormal)
    return tl.where(magnitude > 0x7F800000, 0x7F, code) | sign


@triton.jit
def int8(value):
    """uint32 whose low byte is the nearest integer; 0 for NaN."""
    number = tl.where(value == value, value, 0.0)
    number = tl.minimum(tl.maximum(number, -128.0), 127.0)
    return (number + 12582912.0).to(tl.uint32, bitcast=True)  # 1.5 * 2**23: the integer is in the last bits


@triton.jit
def coded(value, scale, CODE: tl.constexpr):
    """fp32 ``value`` as it is stored: as it is if CODE is "", else the low byte of uint32, of ``value / scale``."""
    if CODE == "e4m3":
        code = float8(tl.div_rn(value, scale), 3, 7, 0x43E00000)
    elif CODE == "e5m2":
        code = float8(tl.div_rn(value, scale), 2, 15, 0x47600000)
    elif CODE == "int8":
        code = int8(tl.div_rn(value, scale))
    else:
        code = value
    return code


@triton.jit
def head_scales(ptr, head, stride, mask, CODE: tl.constexpr):
    """fp32 scale of each ``head``, of which there are those in ``mask``; none without a CODE."""
    scale = 1.0
    if CODE != "":
        scale = tl.load(ptr + head * stride, mask=mask, other=1.0)
    return scale
