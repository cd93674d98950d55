"""What an instruction should give, for one thread, in Python's exact numbers: what the tables are tested against.

Written from the PTX ISA, apart from the tables. Values go in and out as the bits of registers.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["FORMATS", "decoded", "encoded", "expected", "is_nan", "nearest"]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: bits, digits of the significand, exponents of the least and the least too large
    magnitude."""

    bits: int
    digits: int
    least: int
    limit: int


FORMATS = {
    "f16": Format(16, 11, -24, 16), "bf16": Format(16, 8, -133, 128),
    "f32": Format(32, 24, -149, 128), "f64": Format(64, 53, -1074, 1024),
}  # fmt: skip
_PACK = {"f16": "<e", "f32": "<f", "f64": "<d"}
_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FFFFFFFFFFFFFFF}
_COMPARE = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_ROUND = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def decoded(bits: int, type_: str) -> float:
    """The number that bits of a floating type stand for; all are Python floats."""
    if type_ == "bf16":
        bits, type_ = bits << 16, "f32"
    return struct.unpack(_PACK[type_], bits.to_bytes(FORMATS[type_].bits // 8, "little"))[0]


def encoded(value: float, type_: str) -> int:
    """Bits of a number that the type has."""
    if math.isnan(value):
        return _NAN[type_]
    if type_ == "bf16":
        return encoded(value, "f32") >> 16
    return int.from_bytes(struct.pack(_PACK[type_], value), "little")


def is_nan(bits: int, type_: str) -> bool:
    """Whether bits of a type are a NaN's, for types that have one."""
    return type_ in FORMATS and math.isnan(decoded(bits, type_))


def nearest(exact: Fraction, type_: str) -> float:
    """The number of a format that is nearest, of two the one with an even significand."""
    form = FORMATS[type_]
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - form.digits + 1, form.least)
    rounded = round(size / unit) * unit
    value = math.inf if rounded >= Fraction(2) ** form.limit else float(rounded)
    return value if exact > 0 else -value


def _signed(bits: int, width: int) -> int:
    return bits - (1 << width) if bits >> (width - 1) else bits


def _integer(bits: int, type_: str) -> int:
    return _signed(bits, int(type_[1:])) if type_[0] == "s" else bits


def _quotient(a: int, b: int) -> int:
    return -(abs(a) // abs(b)) if (a < 0) != (b < 0) else abs(a) // abs(b)


def _field(a: int, start: int, length: int, signed: bool) -> int:
    start, length = start & 255, length & 255
    fill = a >> min(start + length - 1, 31) & 1 if signed and length else 0
    bits = (a >> start + i & 1 if i < length and start + i <= 31 else fill for i in range(32))
    return sum(bit << i for i, bit in enumerate(bits))


def _permuted(a: int, b: int, selector: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    out = []
    for place in range(4):
        choice = selector >> 4 * place & 15
        byte = source[choice & 7]
        out.append((255 if byte & 128 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(out), "little")


_INTEGER: dict[str, Callable[..., int]] = {
    "add": operator.add, "sub": operator.sub, "mul.lo": operator.mul, "mul.wide": operator.mul,
    "mad.lo": lambda a, b, c: a * b + c, "mad.wide": lambda a, b, c: a * b + c,
    "div": _quotient, "rem": lambda a, b: a - _quotient(a, b) * b, "min": min, "max": max,
    "neg": operator.neg, "abs": abs, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "not": operator.invert, "selp": lambda a, b, p: a if p else b,
}  # fmt: skip


def _integer_result(stem: str, type_: str, values: list[int]) -> int:
    width = 1 if type_ == "pred" else int(type_[1:])
    bits = values
    values = [_integer(v, type_) for v in values] if type_ != "pred" else values
    if stem.startswith("setp."):
        return _COMPARE[stem[5:]](*values)
    if stem == "mul.hi":
        return values[0] * values[1] >> width
    if stem == "mad.wide":
        return values[0] * values[1] + _integer(bits[2], f"{type_[0]}{2 * width}")
    if stem == "shl":
        return values[0] << min(bits[1], width)
    if stem == "shr":
        return values[0] >> min(bits[1], width)
    return _INTEGER[stem](*values)


def _exactly(values: list[float], compute: Callable[..., object]) -> object | None:
    """``compute`` of fractions, or ``None`` if one is not finite, or the result is zero and has a sign to choose."""
    if not all(map(math.isfinite, values)):
        return None
    return compute(*map(Fraction, values)) or None


def _fma(a: float, b: float, c: float, type_: str) -> float:
    exact = _exactly([a, b, c], lambda x, y, z: x * y + z)
    if exact is not None:
        return nearest(exact, type_)
    if a and b and all(map(math.isfinite, (a, b, c))):
        return 0.0  # the terms cancel
    return a * b + c if math.isinf(a) or math.isinf(b) or math.isnan(a * b) or not (a and b) else c


def _extreme(a: float, b: float, sign: int) -> float:
    """max for sign 1, min for -1: the number if one is NaN, and -0 below +0."""
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return max((a, b), key=lambda x: (sign * x, sign * math.copysign(1, x)))


def _divided(a: float, b: float, type_: str) -> float:
    """Rounded to nearest."""
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or a == b == 0:
        return math.nan
    if math.isinf(a) or b == 0:
        return sign * math.inf
    return math.copysign(0.0 if a == 0 or math.isinf(b) else nearest(Fraction(a) / Fraction(b), type_), sign)


def _flushed(value: float, least: float = 2.0**-126) -> float:
    return math.copysign(0.0, value) if abs(value) < least else value


def _arithmetic(stem: str, values: list[float], type_: str) -> float:
    if stem in ("add", "sub", "mul"):
        compute = getattr(operator, stem)
        exact = _exactly(values, compute)
        return compute(*values) if exact is None else nearest(exact, type_)
    if stem == "fma":
        return _fma(*values, type_)
    if stem == "div":
        return _divided(*values, type_)
    if stem in ("min", "max"):
        return _extreme(*values, 1 if stem == "max" else -1)
    return -values[0] if stem == "neg" else math.copysign(values[0], 1)


def _compared(condition: str, a: float, b: float) -> bool:
    unordered = math.isnan(a) or math.isnan(b)
    if condition in ("num", "nan"):
        return unordered == (condition == "nan")
    return len(condition) == 3 if unordered else _COMPARE[condition[:2]](a, b)


def _float_result(stem: str, type_: str, flush: bool, bits: list[int]) -> int:
    values = [decoded(b, type_) for b in bits]
    values = list(map(_flushed, values)) if flush else values
    if stem.startswith("setp."):
        return _compared(stem[5:], *values)
    result = _arithmetic(stem, values, type_)
    return encoded(_flushed(result) if flush else result, type_)


def _reciprocal(bits: int) -> int:
    """rcp.approx.ftz.f64: of the upper 32 bits, to the upper 32 bits."""
    value = _flushed(decoded(bits & ~0xFFFFFFFF, "f64"), 2.0**-1022)
    if value == 0:
        return encoded(math.copysign(math.inf, value), "f64")
    return encoded(_flushed(decoded(encoded(1 / value, "f64") & ~0xFFFFFFFF, "f64"), 2.0**-1022), "f64")


def _inverse_root(bits: int, flush: bool) -> int:
    """rsqrt.approx.f32, correctly rounded, where the manual allows an error of 2**-22.9."""
    value = _flushed(decoded(bits, "f32")) if flush else decoded(bits, "f32")
    if value == 0:
        return encoded(math.copysign(math.inf, value), "f32")
    if not value > 0:
        return encoded(math.nan, "f32")
    if math.isinf(value):
        return encoded(0.0, "f32")
    scaled = Fraction(2) ** 400 / Fraction(value)
    return encoded(nearest(Fraction(math.isqrt(math.floor(scaled)), 2**200), "f32"), "f32")


def _converted(modifiers: list[str], target: str, source: str, bits: int) -> int:
    rounding = next((m for m in modifiers if m in _ROUND), None)
    if source[0] in "us":
        value = _integer(bits, source)
        return value if target[0] in "us" else encoded(nearest(Fraction(value), target), target)
    value = decoded(bits, source)
    if target[0] not in "us":
        if not math.isfinite(value) or value == 0:
            return encoded(value, target)
        exact = Fraction(value)
        whole = Fraction(_ROUND[rounding](exact)) if rounding else exact
        return encoded(math.copysign(nearest(whole, target), value), target)
    width = int(target[1:])
    lowest, highest = (-(1 << width - 1), (1 << width - 1) - 1) if target[0] == "s" else (0, (1 << width) - 1)
    if math.isnan(value):
        return 1 << width - 1 if source == "f64" or width == 64 else 0
    if math.isinf(value):
        return highest if value > 0 else lowest
    return min(max(_ROUND[rounding](Fraction(value)), lowest), highest)


def _packed(name: str, bits: list[int]) -> int:
    """f32x2: twice the same, in halves."""
    halves = [[b >> shift & 0xFFFFFFFF for b in bits] for shift in (0, 32)]
    low, high = (expected(name.removesuffix("x2"), half) for half in halves)
    return high << 32 | low


def expected(name: str, bits: list[int]) -> int:
    """The result's bits, which may have more above than the result has; of NaN, some."""
    opcode, *modifiers = name.split(".")
    type_ = modifiers[-1]
    if name == "rcp.approx.ftz.f64":
        return _reciprocal(*bits)
    if opcode == "rsqrt":
        return _inverse_root(*bits, flush="ftz" in modifiers)
    if type_ == "f32x2":
        return _packed(name, bits)
    if modifiers[-2:-1] == ["f32"] and type_ in ("f16", "bf16") and opcode != "cvt":
        bits = [*(encoded(decoded(b, type_), "f32") for b in bits[:-1]), bits[-1]]
        return expected(name.removesuffix(f".{type_}"), bits)
    if opcode == "cvt":
        target, source = modifiers[-2:]
        if target.endswith("x2"):
            high, low = (_converted(modifiers, target[:-2], source, b) for b in bits)
            return high << 16 | low
        return _converted(modifiers, target, source, *bits)
    if opcode == "bfe":
        return _field(*bits, signed=type_ == "s32")
    if opcode == "prmt":
        return _permuted(*bits)
    stem = ".".join([opcode, *(m for m in modifiers[:-1] if m not in ("rn", "ftz"))])
    if type_ in FORMATS and opcode != "selp":
        return _float_result(stem, type_, "ftz" in modifiers, bits)
    return _integer_result(stem, type_ if opcode != "selp" else f"b{type_[1:]}", bits)
