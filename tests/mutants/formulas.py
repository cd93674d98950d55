"""Mutants of the mathematics that the CPU and CUDA kernels share."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "cpu",
        "csrc/core/frequency.h",
        ("bound", "length > p.switch_length", "length >= p.switch_length", "LongRoPE switches one token early"),
        ("sign", "(p.dynamic_factor - 1.0);", "(p.dynamic_factor + 1.0);", "growth of dynamic NTK"),
        ("operand", "((1.0 - w) / p.factor + w)", "((1.0 - w) + w / p.factor)", "factor on the wrong side of the ramp"),
        ("precision", "std::fma(x, kHigh, -high) + x * kLow", "std::fma(x, kHigh, -high)", "second half of 1 / (2 pi)"),
        (
            "width",
            "((static_cast<std::uint64_t>(position) * turns) >> 32)",
            "((static_cast<std::uint64_t>(static_cast<std::uint32_t>(position)) * turns) >> 32)",
            "negative positions taken for large ones",
        ),
        (
            "dropped",
            "x2 * 2.600054585855105e-06F - 0.00019806614727713168F",
            "x2 * 2.600054585855105e-06F",
            "a term of the sine dropped",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/core/float_angle.h",
        ("dropped", " + high_product(rest, mantissa)", "", "lower part of an fp32 angle's turns"),
        ("precision", "sine = radians;  // 2^-14", ";", "sine of angles next to 0"),
        ("bound", "place < 128 ? k2 : k3", "place < 64 ? k2 : k3", "turns of angles above 2^64"),
    ),
    *in_file(
        "cpu",
        "csrc/core/spec.h",
        (
            "operand",
            "return freq_index.empty() ? pair : freq_index[static_cast<std::size_t>(pair)];",
            "return pair;",
            "axis map",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/core/job.h",
        ("stride", "data[count > 1 ? group * stride : 0]", "data[0]", "all groups have the value of the first"),
    ),
]
