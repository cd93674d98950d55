"""Mutants of the mathematics that the CPU and CUDA kernels share."""

from .mutant import in_file

__all__ = ["MUTANTS"]

_FREQUENCY = in_file(
    "cpu",
    "csrc/core/frequency.h",
    ("length > p.switch_length", "length >= p.switch_length", "LongRoPE switches one token early"),
    ("(p.dynamic_factor - 1.0);", "(p.dynamic_factor + 1.0);", "growth of dynamic NTK"),
    ("if (j >= p.rotated) return 0.0;", "if (j > p.rotated) return 0.0;", "one frequency too many is not zero"),
    ("-2.0 * j / (p.freq_dim - 2)", "-2.0 * j / p.freq_dim", "exponent of dynamic NTK"),
    ("(w > 1.0 ? 1.0 : w)", "w", "ramp not clamped from above"),
    ("((1.0 - w) / p.factor + w)", "((1.0 - w) + w / p.factor)", "factor on the wrong side of the ramp"),
    ("std::fma(x, kHigh, -high) + x * kLow", "std::fma(x, kHigh, -high)", "second half of 1 / (2 pi)"),
    ("inv_freq < 0.0 ? 0 - turns : turns", "turns", "sign of a frequency"),
    (
        "((static_cast<std::uint64_t>(position) * turns) >> 32)",
        "((static_cast<std::uint64_t>(static_cast<std::uint32_t>(position)) * turns) >> 32)",
        "negative positions taken for large ones",
    ),
    (
        "((turns - std::floor(turns)) * 4294967296.0)",
        "((turns - std::floor(turns)) * 16777216.0) << 8",
        "phase truncated to 24 bits",
    ),
    ("(phase + 0x40000000U) & 0x80000000U", "(phase + 0x20000000U) & 0x80000000U", "quadrant"),
    ("x2 * 2.600054585855105e-06F - 0.00019806614727713168F", "x2 * 2.600054585855105e-06F",
     "a term of the sine dropped"),
    ("multiply_add(x2, -2.6077103143506974e-07F, 2.4761886379565112e-05F)", "0.0F", "last terms of the cosine dropped"),
)  # fmt: skip

_ROTATION = in_file(
    "cpu",
    "csrc/core/spec.h",
    ("return freq_index.empty() ? pair : freq_index[static_cast<std::size_t>(pair)];", "return pair;", "axis map"),
)

_JOB = in_file(
    "cpu",
    "csrc/core/job.h",
    ("data[count > 1 ? group * stride : 0]", "data[0]", "all groups have the value of the first"),
)

MUTANTS = [*_FREQUENCY, *_ROTATION, *_JOB]
