"""Mutants of the CUDA kernels and of their launcher."""

from .mutant import in_file

__all__ = ["MUTANTS"]

_ROWS = in_file(
    "cuda",
    "csrc/cuda/tiles.cuh",
    ("fmaf(-cos_sin.sine[i], b,", "fmaf(cos_sin.sine[i], b,", "sign of the sine"),
    ("fmaf(cos_sin.sine[i], a,", "fmaf(-cos_sin.sine[i], a,", "sign of the sine of the second member"),
    ("    if (at.exchanges) __syncthreads();\n", "", "no barrier between threads that exchange"),
    (
        "heads.count > (T::kBatch - 1) * at.head_slots",
        "heads.count > (T::kBatch - 2) * at.head_slots",
        "a batch of heads goes past the last",
    ),
    ("v[1] = widen(static_cast<Element>(word >> 16));", "v[1] = widen(static_cast<Element>(word >> 15));",
     "second fp16 of a word"),
    ("v[1] = __uint_as_float(word & 0xFFFF0000U);", "v[1] = __uint_as_float(word);",
     "a bf16 keeps its neighbour's bits below it"),
    ("heads.y += steps * tensor.to.step;", "heads.y += steps * tensor.from.step;",
     "strides of the input for the output"),
    ("begin = span.first + lane * kSize;", "begin = lane * kSize;",
     "what does not turn is copied from the first channel"),
)  # fmt: skip

_ANGLES = in_file(
    "cuda",
    "csrc/cuda/angles.cuh",
    ("length > at.switch_length", "length >= at.switch_length", "LongRoPE switches one token early"),
    ("(SPLIT && 2 * i >= N ? at.jump : 0)", "(SPLIT && 2 * i > N ? at.jump : 0)", "first pair of a row's second half"),
    (
        "bound_of(packed, middle) <= token",
        "bound_of(packed, middle) < token",
        "first token of a sequence belongs to the one before",
    ),
    ("phase[i] -= general_phase", "phase[i] += general_phase", "difference of the phases at two lengths"),
    ("at.inverse ? -scaling : scaling", "at.inverse ? scaling : scaling", "inverse is forward"),
    ("row * at.positions.axis + place.batch", "row * at.positions.token + place.batch", "stride of the axes"),
    (
        "static_cast<double>(beyond) * at.growth.slope + 1.0",
        "static_cast<double>(beyond) * at.growth.slope",
        "growth of dynamic NTK",
    ),
    (
        "at.tokens_per_batch == 1 ? flat :",
        "at.tokens_per_batch == 0 ? flat :",
        "batch entries of one token, whose reciprocal does not fit",
    ),
    (
        "effect.is_long ? at.long_scaling : at.scaling",
        "effect.is_long ? at.scaling : at.long_scaling",
        "long and short attention scaling exchanged",
    ),
    (
        "position += of_group(at.offset, place.group)",
        "position -= of_group(at.offset, place.group)",
        "sign of the offset",
    ),
    ("place.rotated = place.group < at.packed.sequences;", "place.rotated = true;", "tokens past all sequences turn"),
    ("without_angle |= 1U << i;", "without_angle = ~0U;", "an axis without an angle takes the others with it"),
    ("if (without_angle != 0) {", "if (false) {", "a position without an angle leaves its token as it is"),
    (
        "where.real = static_cast<float>(where.real);",
        "where.real += 0.0;",
        "positions beyond fp32 are not infinite in fp32 phases",
    ),
)

_PLAN = in_file(
    "cuda",
    "csrc/cuda/plan.h",
    ("at.scaling = job.unscaled ? 1.0F :", "at.scaling = job.inverse ? 1.0F :", "scaling left out of the inverse"),
    ("(2 * r.distance - width) * item", "(r.distance - width) * item", "distance between blocks"),
    ("if (operand.heads > 1) places |= s.head;", "", "alignment of heads"),
    (
        "if (by_group || !flat(job.positions.batch, job.positions.token)) return false;",
        "if (!flat(job.positions.batch, job.positions.token)) return false;",
        "batch entries with lengths of their own taken as one",
    ),
    ("r.num_pairs / 2 - shape.chunk / (2 * shape.item)", "r.num_pairs / 2", "pairs between a lane's two chunks"),
    ("f.switch_length > 0 ? r.num_pairs : 0;", "0;", "long row of frequencies"),
    ("-2.0 / (f.freq_dim - 2)", "-2.0 / f.freq_dim", "exponent of dynamic NTK"),
    ("std::uint32_t>(r.num_pairs / r.blocks))", "std::uint32_t>(r.num_pairs))", "pairs of a block"),
    ("job.in_place && shape.read_pairs != shape.write_pairs", "false",
     "threads that exchange, taken for ones that do not"),
    ("const std::int32_t axis = spec.rotation.axis.empty() ? 0 : spec.rotation.axis[i];",
     "const std::int32_t axis = 0;", "axis map"),
)  # fmt: skip

_LAUNCH = [
    *in_file(
        "cuda",
        "csrc/cuda/kernel.cu",
        ("const bool inside = flat < at.count;", "const bool inside = flat <= at.count;", "a token past the last"),
        (
            "place.token * side.token + slot",
            "static_cast<std::int32_t>(place.token * side.token) + slot",
            "32-bit addresses",
        ),
        (
            "inside && !(rotated && at.num_copied == 0)",
            "rotated && at.num_copied != 0",
            "tokens past all sequences are not copied",
        ),
        (
            "shape.token_slots - 1) / shape.token_slots",
            "shape.token_slots) / shape.token_slots - 1",
            "last block of tokens left out",
        ),
    ),
    *in_file(
        "cuda",
        "csrc/cuda/params.cuh",
        ("reciprocal(((1U << 20) + n - 1) / n)", "reciprocal((1U << 20) / n)", "reciprocals rounded down"),
    ),
]

MUTANTS = [*_ROWS, *_ANGLES, *_PLAN, *_LAUNCH]
