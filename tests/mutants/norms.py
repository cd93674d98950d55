"""Mutants of the norms beside the rotation."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "cpu",
        "csrc/cpu/norm.h",
        ("bound", "sum_of_lanes<W>(squares + more), 2 * PAIRS)", "sum_of_lanes<W>(squares + more), PAIRS)",
         "half of the channels"),
        ("operand", "* angles.squared_scale[j];", "* angles.squared_scale[0];", "one pair's rounding for all pairs"),
        ("dropped", "made.squared_scale[j] = c * c + s * s;", "made.squared_scale[j] = F<W>{} + 1.0F;",
         "what a rotation scales is not in the mean"),
        ("operand", "s * (rotate_first ? u1 : u2)", "s * u2", "second members' weights where the norm comes last"),
        ("precision", "squares / static_cast<float>(n) + norm.eps)", "squares / static_cast<float>(n)) + norm.eps",
         "eps outside the root"),
        ("order", "u[kNeighbours ? 2 * pair + 1 : pairs + pair]", "u[kNeighbours ? 2 * pair : pair]",
         "the weights of first members on second ones"),
        ("order", "float* const u = factors_[operand];", "float* const u = factors_[0];", "q's weight on k"),
        ("order", "2 * (i - pairs / 2) + 1;", "2 * (i - pairs / 2);", "the weights of even pairs on odd ones"),
        ("branch", "    for (int i = span.first; i < span.last; ++i) y[i] = x[i];\n", "",
         "channels that are not rotated are not written"),
        ("sign", "b * c - a * s : b * c + a * s;", "b * c + a * s : b * c + a * s;", "gradients are rotated forward"),
        ("sign", "floats_at(grad + i) - floats_at(x + i) * mean", "floats_at(grad + i) + floats_at(x + i) * mean",
         "what a norm takes from a gradient"),
    ),
    *in_file(
        "cuda-norm",
        "csrc/cuda/norm.cuh",
        ("bound", "step < kWarp; step *= 2", "step < kWarp / 2; step *= 2", "half of a warp is not summed up"),
        ("stride", "lane.sums[i * kWarp + first + j]", "lane.sums[i * kWarp + 0 * first + j]",
         "the sums of another row's warps"),
        ("dropped", "fmaf(squares, per_channel, norm.eps)", "squares * per_channel", "eps"),
        ("stride", "place += static_cast<int>(at.lanes.by) * kSize", "place += kSize", "channels are summed up twice"),
    ),
    *in_file(
        "cuda-norm",
        "csrc/cuda/norm_kernel.cuh",
        ("operand", "norm_tensor<T, T::kBatch>(p, at.k, p.k,", "norm_tensor<T, T::kBatch>(p, at.k, p.q,",
         "q's norm on k"),
        ("order", "  if (T::kExchanges && at.exchanges) __syncthreads();\n", "", "threads write what others read"),
        ("mask", "if (!thread.rotated) heads.count = 0;", "", "tokens past all sequences are normed"),
        ("dropped", "add_rest<T, COUNT>(at, tensor, rest, heads, lane.lane, rows.squares);", "",
         "the mean over rotated channels only"),
        ("precision", "scale<C::kCount>(v, u);", "", "weights of channels that are not rotated"),
    ),
    *in_file(
        "cuda-norm",
        "csrc/cuda/norm_plan.h",
        ("stride", "norm.weight_stride == 1 && ", "", "weights with gaps are loaded side by side"),
        ("mask", "reinterpret_cast<std::intptr_t>(norm.weight) % 16 == 0", "true", "weights that are not aligned"),
        ("operand", "norm.after_rope ? shape.write_pairs : shape.read_pairs", "shape.read_pairs",
         "weights of pairs as they were read"),
    ),
    *in_file(
        "cuda-norm",
        "csrc/cuda/norm_backward.cuh",
        ("sign", "fmaf(-z[i], mean, h[i])", "fmaf(z[i], mean, h[i])", "what a norm takes from a gradient"),
        ("sign", "fmaf(cos_sin.sine[i], b[i], a[i]", "fmaf(-cos_sin.sine[i], b[i], a[i]", "rotated forward"),
        ("bound", "first + part < at.count;", "first + part + 1 < at.count;", "the last token of a part is left out"),
        ("stride", "std::int64_t{part} * p.head_dim", "std::int64_t{0}", "all parts in one place"),
        ("dropped", "head.x += gradients.x.step;", "", "the first head for all"),
        ("branch", "head.is_live ? inverse_rms(norm, squares, p.per_channel) : 0.0F",
         "inverse_rms(norm, squares, p.per_channel)", "rows that are not there have an infinite factor without eps"),
    ),
    *in_file(
        "cpu",
        "csrc/ops/launch_cpu.cpp",
        ("stride", "norm.weight_grad += part * head_dim;", "norm.weight_grad += 0;",
         "threads share the sums of a weight's gradient"),
    ),
]  # fmt: skip
