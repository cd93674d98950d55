"""Mutants of the CUDA kernels and of their launcher."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "cuda",
        "csrc/cuda/tiles.cuh",
        ("sign", "fmaf(-cos_sin.sine[i], b,", "fmaf(cos_sin.sine[i], b,", "sign of the sine"),
        ("order", "    if (at.exchanges) __syncthreads();\n", "", "no barrier between threads that exchange"),
        (
            "bound",
            "heads.count > (T::kBatch - 1) * at.head_slots",
            "heads.count > (T::kBatch - 2) * at.head_slots",
            "a batch of heads goes past the last",
        ),
        (
            "precision",
            "v[1] = __uint_as_float(word & 0xFFFF0000U);",
            "v[1] = __uint_as_float(word);",
            "a bf16 keeps its neighbour's bits below it",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/rows.cuh",
        (
            "stride",
            "heads.y += steps * tensor.to.step;",
            "heads.y += steps * tensor.from.step;",
            "strides of the input for the output",
        ),
        (
            "width",
            "place.token * side.token + slot",
            "static_cast<std::int32_t>(place.token * side.token) + slot",
            "32-bit addresses",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/angles.cuh",
        ("bound", "length > at.switch_length", "length >= at.switch_length", "LongRoPE switches one token early"),
        (
            "sign",
            "angle.turns -= other.turns;",
            "angle.turns += other.turns;",
            "difference of the phases at two lengths",
        ),
        (
            "stride",
            "axis * positions.axis + place.batch",
            "axis * positions.token + place.batch",
            "stride of the axes",
        ),
        (
            "dropped",
            "static_cast<double>(beyond) * at.growth.slope + 1.0",
            "static_cast<double>(beyond) * at.growth.slope",
            "growth of dynamic NTK",
        ),
        (
            "width",
            "at.tokens_per_batch == 1 ? flat :",
            "at.tokens_per_batch == 0 ? flat :",
            "batch entries of one token: their reciprocal does not fit",
        ),
        (
            "operand",
            "effect.is_long ? at.long_scaling : at.scaling",
            "effect.is_long ? at.scaling : at.long_scaling",
            "long and short attention scaling exchanged",
        ),
        (
            "mask",
            "place.rotated = place.group < at.packed.sequences;",
            "place.rotated = true;",
            "tokens past all sequences are rotated",
        ),
        (
            "branch",
            "if (!is_known) s = c = NAN;",
            "",
            "a position without an angle leaves its token unchanged",
        ),
        (
            "precision",
            "return {turns_of(product), product};",
            "return {turns_of(product), 1.0F};",
            "fp32 phases next to 0 have the digits of turns, and infinite ones a sine",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/plan.h",
        (
            "branch",
            "at.scaling = job.unscaled ? 1.0F :",
            "at.scaling = job.inverse ? 1.0F :",
            "scaling left out of the inverse",
        ),
        ("stride", "(2 * r.distance - width) * item", "(r.distance - width) * item", "distance between blocks"),
        ("dropped", "if (operand.heads > 1) places |= s.head;", "", "alignment of heads"),
        (
            "order",
            "job.in_place && shape.read_pairs != shape.write_pairs",
            "false",
            "threads that exchange, taken for ones that do not",
        ),
        (
            "operand",
            "const std::int32_t axis = spec.rotation.axis.empty() ? 0 : spec.rotation.axis[i];",
            "const std::int32_t axis = 0;",
            "axis map",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/kernel.cu",
        (
            "bound",
            "const bool inside = flat < at.count;",
            "const bool inside = flat <= at.count;",
            "a token past the last",
        ),
        (
            "mask",
            "inside && !(rotated && at.num_copied == 0)",
            "rotated && at.num_copied != 0",
            "tokens past all sequences are not copied",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/table.cuh",
        ("sign", "? -cos_sin.second_sine[i] : s", "? cos_sin.second_sine[i] : s", "sign of the sine of the adjoint"),
        (
            "order",
            "? -s : cos_sin.second_sine[i]",
            "? -cos_sin.second_sine[i] : cos_sin.second_sine[i]",
            "no swap",
        ),
        (
            "bound",
            "place.counted >= 0 && place.counted < p.table.rows",
            "place.counted >= 0",
            "rows past the table are read",
        ),
        (
            "branch",
            "shape.chunk > 0 && !(neighbours && by_pair)",
            "shape.chunk > 0",
            "neighbours share an entry that is loaded as two",
        ),
        ("stride", "table.wide && side->channel == item", "table.wide", "entries with gaps are loaded side by side"),
        ("mask", " | side->batch | side->token;", ";", "rows of a table that are not aligned"),
        ("stride", "+ place.batch * side.batch +", "+", "a table of one batch entry for all"),
        ("stride", "(entry + table.second) * channel", "(entry + 1) * channel", "entry of the second member of a pair"),
        (
            "branch",
            "std::min<std::int64_t>(16, shape.chunk / shape.item * item)",
            "std::int64_t{8}",
            "rows aligned to 8 bytes are loaded 16 at once",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/params.cuh",
        ("precision", "reciprocal(((1U << 20) + n - 1) / n)", "reciprocal((1U << 20) / n)", "reciprocals rounded down"),
    ),
]
