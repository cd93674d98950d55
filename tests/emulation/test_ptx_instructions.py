"""Every instruction of the emulator against exact arithmetic, run as PTX on every combination of edge values."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.ptx import Memory, Program, PTXError, run
from emulation.ptx.exact import FORMATS, encoded, expected, is_nan
from emulation.ptx.execute import COMPUTING
from emulation.ptx.types import TYPES, unsigned

NUMBERS = [
    0.0, 1.0, 1.5, 2.5, 0.5, 0.1, 1 / 3, 3.0, 65504.0, 65520.0, 2.0**-24, 2.0**-25, 2.0**-14, 2.0**-126, 2.0**-149,
    2.0**-1022, 2.0**-1074, 1.0 - 2.0**-24, 1.0 + 2.0**-23, 1.0 + 2.0**-8, 1.0 + 2.0**-7 + 2.0**-8, 16777217.0,
    2.0**31, 2.0**31 - 0.5, 2.0**32, 2.0**32 - 1, 2.0**63, 2.0**64, 2.0**64 - 2048, 3.4028235677973366e38,
    3.4028234663852886e38, 1.7976931348623157e308, float("inf"),
]  # fmt: skip
FEW_NUMBERS = [
    0.0, 1.0, 0.1, 1 / 3, 1.0 + 2.0**-23, 1.0 + 2.0**-52, 2.0**-126, 2.0**-149, 2.0**-1074, 2.0**-600, 2.0**600,
    3.4028234663852886e38, 1.7976931348623157e308, float("inf"),
    # with 1 + 2**-23 as a factor, and 1: a sum so near half way that rounding twice, in between to fp64, goes wrong
    2.0**-24 - 2.0**-47, 2.0**-53 - 2.0**-105,
]  # fmt: skip
INTEGERS = [0, 1, 2, 3, 5, 7, 15, 16, 31, 32, 33, 63, 64, 100, 255, 256, 0x5555, 65535, 65536, 0x12345678, 2**31, 2**33]
INTEGERS += [2**n - 1 for n in (31, 32, 63)] + [2**63, 0x0123456789ABCDEF, 0xFEDCBA9876543210]
FEW_INTEGERS = [0, 1, 2, 5, 31, 32, 255, 0x7FFF, 0x8000, 0x12345678, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64 - 2]


def edge_values(type_, few=False):
    """Bits of values of a type on which an instruction may go wrong."""
    bits = 8 * TYPES[type_].itemsize
    if type_ == "pred":
        return [0, 1]
    if type_ == "f32x2":
        single = edge_values("f32", few=True)
        return [a << 32 | b for a, b in zip(single, reversed(single), strict=True)]
    if type_ in FORMATS:
        found = {0x7FFF << (bits - 16) | 1}
        for number in FEW_NUMBERS if few else NUMBERS:
            for value in (number, -number):
                with np.errstate(over="ignore"):
                    narrow = {"f16": np.float16, "f64": np.float64}.get(type_, np.float32)(value)
                found.add(encoded(float(narrow), type_))
        return sorted(found)
    numbers = FEW_INTEGERS if few else INTEGERS
    return sorted({sign * n & (2**bits - 1) for n in numbers for sign in (1, -1)})


def kernel_of(name):
    """A kernel in which every thread executes the instruction once, on values from arrays ``a``, ``b``, ``c``."""
    known = COMPUTING[name]
    loads, operands = [], []
    for i, type_ in enumerate(known.operands):
        size = 8 * TYPES[type_].itemsize
        loads.append(f"mul.lo.u64 %rd1, %rd0, {size // 8}; ld.param.u64 %rd2, [p{i}]; add.s64 %rd3, %rd2, %rd1;")
        register = f"%x{size}_{i}" if size > 8 else f"%x16_{i}"
        loads.append(f"ld.global.u{size} {register}, [%rd3];")
        if type_ == "pred":
            loads.append(f"setp.ne.s16 %p{i}, {register}, 0;")
            register = f"%p{i}"
        operands.append(register)
    size = 8 * TYPES[known.result].itemsize
    result = "%p9" if known.result == "pred" else f"%x{max(size, 16)}_9"
    store = "selp.u16 %x16_9, 1, 0, %p9;" if known.result == "pred" else ""
    registers = "".join(f".reg .b{n} %x{n}_<10>; " for n in (16, 32, 64))
    return f"""
        .version 8.0
        .target sm_90
        .visible .entry kernel(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 out)
        {{
            {registers} .reg .pred %p<10>; .reg .b64 %rd<6>; .reg .b32 %r<4>;
            mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.s32 %r3, %r0, %r1, %r2;
            cvt.u64.u32 %rd0, %r3;
            {" ".join(loads)}
            {name} {result}, {", ".join(operands)};
            {store}
            mul.lo.u64 %rd1, %rd0, {size // 8}; ld.param.u64 %rd2, [out]; add.s64 %rd3, %rd2, %rd1;
            st.global.u{size} [%rd3], %x{max(size, 16)}_9;
            ret;
        }}"""


def execute(name, columns):
    """The instruction's results on values given as bits, one list per operand."""
    known, memory, addresses = COMPUTING[name], Memory(), []
    count = len(columns[0])
    arrays = [np.array(c, unsigned(TYPES[t].itemsize)) for c, t in zip(columns, known.operands, strict=True)]
    out = np.zeros(count, unsigned(TYPES[known.result].itemsize))
    for array in [*arrays, *[None] * (3 - len(arrays)), out]:
        addresses.append(0 if array is None else array.ctypes.data)
        if array is not None:
            memory.add("values", array.ctypes.data, array.view(np.uint8))
    run(Program.parse(kernel_of(name)).kernels["kernel"], (count,), (1,), addresses, memory)
    return out.tolist()


def check(name, columns):
    known = COMPUTING[name]
    mask = 1 if known.result == "pred" else 2 ** (8 * TYPES[known.result].itemsize) - 1
    for got, *values in zip(execute(name, columns), *columns, strict=True):
        wanted = int(expected(name, values)) & mask
        assert same(got, wanted, known.result), f"{name} of {[hex(v) for v in values]}: {got:#x}, not {wanted:#x}"


def same(got, wanted, type_):
    if type_ == "f32x2":
        return all(same(got >> n & 0xFFFFFFFF, wanted >> n & 0xFFFFFFFF, "f32") for n in (0, 32))
    return got == wanted or (is_nan(got, type_) and is_nan(wanted, type_))


def valid(name, values):
    return values[1] != 0 if name.startswith(("div.s", "div.u", "rem")) else True


@pytest.mark.parametrize("name", sorted(COMPUTING))
def test_edge_values(name):
    types = COMPUTING[name].operands
    rows = itertools.product(*(edge_values(t, few=len(types) > 2) for t in types))
    check(name, list(zip(*(row for row in rows if valid(name, row)), strict=True)))


ROUNDED = sorted(
    n for n in COMPUTING if n.startswith(("add.rn", "mul.rn", "div.rn", "fma", "cvt.rn", "rcp", "rsqrt", "mul.hi"))
)


def check_any(name, values):
    words = np.frombuffer(values, np.uint64).reshape(3, -1)
    types = COMPUTING[name].operands
    check(name, [(w >> np.uint64(64 - 8 * TYPES[t].itemsize)).tolist() for w, t in zip(words, types, strict=False)])


ANY = st.binary(min_size=24 * 16, max_size=24 * 16)
"""16 values for each of three operands."""


@pytest.mark.parametrize("name", ROUNDED)
@settings(max_examples=15)
@given(values=ANY)
def test_any_values(name, values):
    check_any(name, values)


@pytest.mark.full
@pytest.mark.parametrize("name", ROUNDED)
@settings(max_examples=100)
@given(values=ANY)
def test_more_values(name, values):
    check_any(name, values)


def test_what_is_not_in_a_table_is_refused():
    text = kernel_of("add.rn.f32").replace("add.rn.f32", "add.rz.f32")
    with pytest.raises(PTXError, match=r"unknown instruction add\.rz\.f32"):
        run(Program.parse(text).kernels["kernel"], (1,), (1,), [0] * 4, Memory())
