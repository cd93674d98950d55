"""Mutants of the Triton kernels and of their launch code."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "triton",
        "rope_kernels/backends/triton/tiles.py",
        ("sign", "first * cs[0] - second * cs[1]", "first * cs[0] + second * cs[1]", "sign of the sine"),
        (
            "precision",
            "second = (word & 0xFFFF0000).to(tl.float32, bitcast=True)",
            "second = word.to(tl.float32, bitcast=True)",
            "a bf16 keeps its neighbour's bits below it",
        ),
        (
            "stride",
            "TILE.DISTANCE * (pair // TILE.BLOCK_PAIRS)",
            "TILE.DISTANCE * (pair // TILE.PAIRS)",
            "second block of a row taken for the first",
        ),
        (
            "order",
            "        tl.debug_barrier()  # threads of a row write where others of them read\n",
            "        pass\n",
            "no barrier between the loads and stores of threads that exchange",
        ),
        ("mask", "mask = keep & (element < LAST)", "mask = keep & (element <= LAST)", "one channel too many is copied"),
        (
            "bound",
            "there = first + head < HEADS if REST else True",
            "there = first + head <= HEADS if REST else True",
            "a head past the last",
        ),
        (
            "branch",
            "STORE: tl.constexpr = CUT or REST or TILE.TAIL or PACKED",
            "STORE: tl.constexpr = CUT or REST or TILE.TAIL",
            "tokens past all sequences are rotated",
        ),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/kernels.py",
        ("stride", "token -= batch * tokens_per_batch", "token -= batch", "place in a batch entry"),
        (
            "bound",
            "token = tl.minimum(token, num_tokens - 1)",
            "token = tl.minimum(token, num_tokens)",
            "one token past the end is read",
        ),
        ("width", "token.to(tl.int64) * token_stride)", "token * token_stride.to(tl.int32))", "32-bit addresses"),
        (
            "bound",
            "before = tl.load(cu_seqlens_ptr + middle) <= token",
            "before = tl.load(cu_seqlens_ptr + middle) < token",
            "first token of a sequence belongs to the one before",
        ),
        (
            "mask",
            "inside = inside & (group < num_sequences)",
            "inside = inside",
            "tokens past all sequences belong to one",
        ),
        (
            "sign",
            "found = (-position,) if ANGLE.INVERSE else (position,)",
            "found = (position,)",
            "inverse of counted positions is forward",
        ),
        (
            "operand",
            "tl.where(is_long, long_scaling, 0.0) + tl.where(is_long, 0.0, scaling)",
            "tl.where(is_long, scaling, 0.0) + tl.where(is_long, 0.0, long_scaling)",
            "long and short attention scaling exchanged",
        ),
        (
            "operand",
            "return (c0, -s1, c1, -s0) if INVERSE",
            "return (c0, -s0, c1, -s1) if INVERSE",
            "adjoint by a table whose halves differ",
        ),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/trig.py",
        ("bound", "index < ANGLE.ROTATED", "index <= ANGLE.ROTATED", "one frequency too many is not zero"),
        ("precision", "* f) >> 32", "* f) >> 44 << 12", "phase truncated to 20 bits"),
        (
            "width",
            "(position.to(tl.int64).to(tl.uint64) * f)",
            "(position.to(tl.uint32).to(tl.uint64) * f)",
            "negative positions taken for large ones",
        ),
        ("sign", "(bits + 0x40000000) & 0x80000000", "(bits + 0x20000000) & 0x80000000", "quadrant"),
        (
            "dropped",
            "2.600054585855105e-06 * x2 - 0.00019806614727713168",
            "2.600054585855105e-06 * x2",
            "a term of the sine dropped",
        ),
        (
            "stride",
            "tl.where((entry >> 16) == axis, positions[axis]",
            "tl.where((entry >> 16) == axis, positions[axis - 1]",
            "axis of positions",
        ),
        (
            "branch",
            "        x += (position - position).to(tl.float32)\n",
            "        pass\n",
            "a position that is no number is 0",
        ),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/float_angle.py",
        ("dropped", " + ((rest * mantissa) >> 32)", "", "lower part of an fp32 angle's turns"),
        ("precision", "tl.where(tl.abs(radians) < 6.103515625e-05, radians, s)", "s", "sine of angles next to 0"),
        (
            "branch",
            'tl.where(tl.abs(radians) < float("inf"), value, float("nan"))',
            "value",
            "an fp32 angle that is infinite has a sine",
        ),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/constants.py",
        ("sign", "ramp = (low + slope * c,", "ramp = (low - slope * c,", "start of the ramp"),
        (
            "operand",
            "return (1 - w) / Decimal(params.factor) + w",
            "return (1 - w) + w / Decimal(params.factor)",
            "factor on the wrong side of the ramp",
        ),
        ("stride", " << 16 | j for", " << 16 for", "frequencies of an axis map"),
        ("dropped", "-2.0 / (params.freq_dim - 2)", "-2.0 / params.freq_dim", "exponent of dynamic NTK"),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/launch.py",
        (
            "stride",
            "(positions.stride(1) if positions.shape[1] > 1 else 0)",
            "positions.stride(1)",
            "one row of positions read as if there were one per batch entry",
        ),
        (
            "branch",
            "if len({_in_place(pair) for pair in present}) == 2",
            "if len({_in_place(pair) for pair in present}) == 3",
            "one launch for a tensor in place and one apart",
        ),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/plan.py",
        ("mask", "TAIL=tail", "TAIL=False", "tokens past the end are not masked"),
        (
            "order",
            "IN_PLACE and read_pairs != write_pairs",
            "IN_PLACE and False",
            "programs exchange parts of a row in place",
        ),
    ),
    *in_file(
        "triton",
        "rope_kernels/backends/triton/compiled.py",
        ("operand", "addresses += [len(cells),", "addresses += [number,", "constants count as parameters"),
        ("refusal", "metadata.num_ctas == 1 and ", "", "a launch in clusters is repeated without"),
    ),
]
