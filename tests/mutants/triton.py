"""Mutants of the Triton kernels and of their launch code."""

from .mutant import in_file

__all__ = ["MUTANTS"]

_TRITON = "rope_kernels/backends/triton"

_TILES = in_file(
    "triton",
    f"{_TRITON}/tiles.py",
    (
        "first * turn[0] - second * turn[1]",
        "first * turn[0] + second * turn[1]",
        "sign of the sine",
    ),
    (
        "second = (word & 0xFFFF0000).to(tl.float32, bitcast=True)",
        "second = word.to(tl.float32, bitcast=True)",
        "a bf16 keeps its neighbour's bits below it",
    ),
    (
        "TILE.DISTANCE * (pair // TILE.BLOCK_PAIRS)",
        "TILE.DISTANCE * (pair // TILE.PAIRS)",
        "second block of a row taken for the first",
    ),
    (
        "store(o + TILE.DISTANCE, joined(d0, d1",
        "store(o + TILE.PAIRS, joined(d0, d1",
        "second members next to the first ones, wherever they belong",
    ),
    (
        "        tl.debug_barrier()  # threads of a row write where others of them read\n",
        "        pass\n",
        "no barrier between the loads and stores of threads that exchange",
    ),
    (
        "TILE.COPIES[r][0], TILE.COPIES[r][1], TILE)",
        "TILE.COPIES[r][0], TILE.COPIES[r][1] - 1, TILE)",
        "last channel of those that do not turn is not copied",
    ),
    (
        "mask = keep & (element < LAST)",
        "mask = keep & (element <= LAST)",
        "one channel too many is copied",
    ),
    (
        "there = first + head < HEADS if REST else True",
        "there = first + head <= HEADS if REST else True",
        "a head past the last",
    ),
    (
        "mask, 0, TILE.HEAD_DIM, TILE)",
        "mask, 0, 2 * TILE.PAIRS, TILE)",
        "of tokens past all sequences, only what would turn is copied",
    ),
    (
        "STORE: tl.constexpr = CUT or REST or TILE.TAIL or PACKED",
        "STORE: tl.constexpr = CUT or REST or TILE.TAIL",
        "tokens past all sequences are rotated",
    ),
    (
        "return tl.program_id(1) * TILE.CHUNK if TILE.CHUNKS > 1 else 0",
        "return 0",
        "every part of a row is the first one",
    ),
    (
        "value.to(pointers.dtype.element_ty, bitcast=True)",
        "value.to(pointers.dtype.element_ty)",
        "results of 16 bits become whole numbers",
    ),
)

_KERNELS = in_file(
    "triton",
    f"{_TRITON}/kernels.py",
    ("token -= batch * tokens_per_batch", "token -= batch", "place in a batch entry"),
    (
        "token = tl.minimum(token, num_tokens - 1)",
        "token = tl.minimum(token, num_tokens)",
        "one token past the end is read",
    ),
    (
        "token.to(tl.int64) * token_stride)",
        "token * token_stride.to(tl.int32))",
        "32-bit addresses",
    ),
    ("middle = (low + high + 1) >> 1", "middle = (low + high) >> 1", "bisection that stops one early"),
    (
        "before = tl.load(cu_seqlens_ptr + middle) <= token",
        "before = tl.load(cu_seqlens_ptr + middle) < token",
        "first token of a sequence belongs to the one before",
    ),
    ("inside = inside & (group < num_sequences)", "inside = inside", "tokens past all sequences belong to one"),
    ("is_long = length > switch_length", "is_long = length >= switch_length", "LongRoPE switches one token early"),
    (
        "found = (-position,) if ANGLE.INVERSE else (position,)",
        "found = (position,)",
        "inverse of counted positions is forward",
    ),
    ("p + axis * axis_stride", "p + axis * token_stride", "stride of the axes"),
    (
        "start = start - of_group(offset_ptr",
        "start = start + of_group(offset_ptr",
        "sign of the offset",
    ),
    (
        "tl.where(is_long, long_scaling, 0.0) + tl.where(is_long, 0.0, scaling)",
        "tl.where(is_long, scaling, 0.0) + tl.where(is_long, 0.0, long_scaling)",
        "long and short attention scaling exchanged",
    ),
    (
        "return (c0, -s1, c1, -s0) if INVERSE",
        "return (c0, -s0, c1, -s1) if INVERSE",
        "adjoint by a table whose halves differ",
    ),
)

_TRIG = in_file(
    "triton",
    f"{_TRITON}/trig.py",
    ("            step = step * step", "            step = step", "growth of dynamic NTK's higher powers"),
    (
        "return tl.where(share < highest, share, highest)",
        "return share",
        "ramp not clamped from above",
    ),
    ("index < ANGLE.ROTATED", "index <= ANGLE.ROTATED", "one frequency too many is not zero"),
    ("* f) >> 32", "* f) >> 44 << 12", "phase truncated to 20 bits"),
    (
        "(position.to(tl.int64).to(tl.uint64) * f)",
        "(position.to(tl.uint32).to(tl.uint64) * f)",
        "negative positions taken for large ones",
    ),
    ("(turned + 0x40000000) & 0x80000000", "(turned + 0x20000000) & 0x80000000", "quadrant"),
    (
        "2.600054585855105e-06 * x2 - 0.00019806614727713168",
        "2.600054585855105e-06 * x2",
        "a term of the sine dropped",
    ),
    ("x2 * (-0.00138884037733078 + x2 * c)", "x2 * -0.00138884037733078", "last terms of the cosine dropped"),
    ("tl.where((place >> 16) == axis, rows[axis]", "tl.where((place >> 16) == axis, rows[axis - 1]",
     "row of positions"),
    ("turned = turned - phase(position, f, ANGLE)", "turned = turned + phase(position, f, ANGLE)",
     "difference of the phases at two lengths"),
    ("        c = c * scaling\n", "", "scaling of the cosine dropped"),
    ("        x += (position - position).to(tl.float32)\n", "        pass\n", "a position that is no number is 0"),
    ("    return turned, position\n", "    return turned, rows[0]\n", "positions are numbers if the first axis's is"),
)  # fmt: skip

_LAUNCH = [
    *in_file(
        "triton",
        f"{_TRITON}/constants.py",
        ("ramp = (low + slope * c,", "ramp = (low - slope * c,", "start of the ramp"),
        (
            "return (1 - w) / Decimal(params.factor) + w",
            "return (1 - w) + w / Decimal(params.factor)",
            "factor on the wrong side of the ramp",
        ),
        ("[row << 16 | j for", "[row << 16 for", "frequencies of an axis map"),
        ("-2.0 / (params.freq_dim - 2)", "-2.0 / params.freq_dim", "exponent of dynamic NTK"),
    ),
    *in_file(
        "triton",
        f"{_TRITON}/launch.py",
        (
            "(positions.stride(1) if positions.shape[1] > 1 else 0)",
            "positions.stride(1)",
            "one row of positions read as if there were one per batch entry",
        ),
        (
            "if len({_in_place(pair) for pair in present}) == 2",
            "if len({_in_place(pair) for pair in present}) == 3",
            "one launch for a tensor in place and one apart",
        ),
    ),
    *in_file(
        "triton",
        f"{_TRITON}/plan.py",
        ("TAIL=tokens % shape[0] != 0", "TAIL=False", "tokens past the end are not masked"),
        (
            "whole_rows = not prefill or (rows.IN_PLACE and read_pairs != write_pairs)",
            "whole_rows = not prefill",
            "programs exchange parts of a row in place",
        ),
    ),
]

MUTANTS = [*_TILES, *_KERNELS, *_TRIG, *_LAUNCH]
