"""Mutants of the norms beside the rotation."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "cpu",
        "csrc/cpu/norm.h",
        ("bound", "sum_of_lanes<W>(squares), 2 * PAIRS)", "sum_of_lanes<W>(squares), PAIRS)", "half of the channels"),
        ("precision", "squares / static_cast<float>(n) + norm.eps)", "squares / static_cast<float>(n)) + norm.eps",
         "eps outside the root"),
        ("order", "u[neighbours ? 2 * pair + 1 : pairs + pair]", "u[neighbours ? 2 * pair : pair]",
         "the weights of first members on second ones"),
        ("order", "factors_of_members(norm, norm.after_rope", "factors_of_members(job.norms[0], norm.after_rope",
         "q's weight on k"),
        ("order", "2 * (i - pairs / 2) + 1;", "2 * (i - pairs / 2);", "the weights of even pairs on odd ones"),
        ("branch", "    for (int i = span.first; i < span.last; ++i) y[i] = x[i];\n", "",
         "channels that are not rotated are not written"),
        ("sign", "b * c - a * s : b * c + a * s;", "b * c + a * s : b * c + a * s;", "gradients are rotated forward"),
        ("sign", "floats_at(grad + i) - floats_at(x + i) * mean", "floats_at(grad + i) + floats_at(x + i) * mean",
         "what a norm takes from a gradient"),
    ),
    *in_file(
        "cpu",
        "csrc/ops/launch_cpu.cpp",
        ("stride", "norm.weight_grad += part * head_dim;", "norm.weight_grad += 0;",
         "threads share the sums of a weight's gradient"),
    ),
]  # fmt: skip
