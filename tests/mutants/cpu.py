"""Mutants of the CPU kernels."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "cpu",
        "csrc/cpu/heads.h",
        (
            "sign",
            "const F<W> p = a * load_as<F<W>>(cosine + i) - b * load_as<F<W>>(sine + i);",
            "const F<W> p = a * load_as<F<W>>(cosine + i) + b * load_as<F<W>>(sine + i);",
            "sign of the sine",
        ),
        (
            "sign",
            "D::narrow(a * cosine[i] - b * sine[i])",
            "D::narrow(a * cosine[i] + b * sine[i])",
            "sign of the sine, pairs that fill no vector",
        ),
        (
            "order",
            "const bool aside = READ != WRITE && job.in_place;",
            "const bool aside = false;",
            "pairs written in place over those still to be read",
        ),
        (
            "stride",
            "const int start = 2 * part * r.distance,",
            "const int start = part * r.distance,",
            "distance between blocks",
        ),
        (
            "sign",
            "p[j] = a * cosine[j] - b * sine[j];",
            "p[j] = a * cosine[j] + b * sine[j];",
            "sign of the sine, usual heads",
        ),
        (
            "operand",
            "load_as<F<W>>(cosine2 + i) + a *",
            "load_as<F<W>>(cosine + i) + a *",
            "a table's cosines of second members",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/words.h",
        (
            "sign",
            "BFloat16::narrow(b * c + a * s)",
            "BFloat16::narrow(b * c - a * s)",
            "sign of the sine, words that fill no vector",
        ),
        ("mask", "(1U << count) - 1U", "(1U << (count - 1)) - 1U", "last word of a masked vector"),
        (
            "stride",
            "store_as<STREAM>(y + distance + 2 * j * L, b);",
            "store_as<STREAM>(y + 2 * WORDS + 2 * j * L, b);",
            "second halves stored beside the first ones",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/cos_sin.h",
        ("bound", "std::min(kBlockFloats / step_, kBlockTokens)", "kBlockTokens", "long heads' cosines over the sines"),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/traversal.h",
        (
            "branch",
            "while (n % (bytes / 4) != 0)",
            "while (n < bytes / 4)",
            "pairs that fill no whole number of vectors",
        ),
        (
            "stride",
            "y + h * operand.to.head + j * operand.to.token,",
            "y + h * operand.to.head + j * operand.from.token,",
            "where a run of a head's tokens is stored",
        ),
        (
            "bound",
            "std::min(first + group, operand.heads)",
            "std::min(first + group, operand.heads - 1)",
            "last head of those before tokens",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/untouched.h",
        (
            "branch",
            "if (job.operands[i].is_in_place()) continue;",
            "if (true) continue;",
            "what is not rotated is not copied",
        ),
        (
            "bound",
            "const std::int64_t width = span.last - span.first;",
            "const std::int64_t width = span.last - span.first - 1;",
            "last channel of those that are not rotated is not copied",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/table.h",
        (
            "precision",
            "~is_number & 0x7fc00000U",
            "~is_number & 0x7fffffffU",
            "a table's NaN is rounded up to another number",
        ),
        (
            "operand",
            "cos_sin.sine()[i] = -cos_sin.second_sine()[i];",
            "cos_sin.sine()[i] = -s;",
            "adjoint by a table whose halves differ",
        ),
        (
            "branch",
            "std::memcmp(cos_sin.sine(), cos_sin.second_sine(), bytes) == 0;",
            "true;",
            "members that differ in their sines alone",
        ),
        (
            "stride",
            "cos_sin.cosine, cos_sin.cosine + words);",
            "cos_sin.cosine, cos_sin.cosine + num_pairs);",
            "cosines of second elements",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/angles.h",
        ("branch", "r.axis.empty() && r.phase", "r.phase", "several axes taken for one"),
        (
            "bound",
            "if (job.packed.bound(middle) <= at.token)",
            "if (job.packed.bound(middle) < at.token)",
            "first token of a sequence belongs to the one before",
        ),
        (
            "state",
            "if (at.group == work.group) return;",
            "if (work.group >= 0) return;",
            "all sequences have the length of the first",
        ),
        ("width", "if (p1 != 0) product += of_low * p1;", "", "upper half of the position, and so negative ones"),
        (
            "dropped",
            "_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd)",
            "_mm512_srli_epi64(even, 32)",
            "AVX-512 takes the lower halves of odd lanes' frequencies as zero",
        ),
        (
            "dropped",
            "_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa)",
            "_mm256_srli_epi64(even, 32)",
            "AVX2 takes the lower halves of odd lanes' frequencies as zero",
        ),
        (
            "sign",
            " - (work.from != nullptr ? phase(*work.from) : 0U);",
            " + (work.from != nullptr ? phase(*work.from) : 0U);",
            "difference of the phases at two lengths",
        ),
        (
            "stride",
            "cos_sin.sine()[pair] = cos_sin.cosine[pair] =",
            "cos_sin.sine()[0] = cos_sin.cosine[0] =",
            "a NaN position clears the first pair instead of its own",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/radians.h",
        ("precision", " - whole * kQuarter2;", ";", "third part of a quarter turn"),
        ("bound", "kNear = 268435456.0;", "kNear = 1e12;", "far angles lose digits of the quarter turns"),
        ("sign", "flipped(c_bits ^ exchanged, quarters + 1U)", "flipped(c_bits ^ exchanged, quarters)", "quadrant"),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/floats.h",
        ("precision", "return bits + 0x7fffU + ((bits >> 16) & 1U);", "return bits;", "bf16 truncated"),
        ("branch", "0x38800000) ? normal : denormal", "0x38800000) ? normal : normal", "denormal fp16 results"),
        (
            "operand",
            "first = __builtin_shufflevector(a, b, 0, 2, 4, 6);",
            "first = __builtin_shufflevector(a, b, 0, 1, 4, 5);",
            "first members of neighbouring fp32 pairs",
        ),
        ("operand", "0x3333333333333333, a, swapped)", "0xcccccccccccccccc, a, swapped)", "order of AVX-512's words"),
        ("precision", "kOrNot = 0xae;", "kOrNot = 0xea;", "AVX-512 rounds ties to odd"),
        (
            "sign",
            "_mm512_cmpge_epu16_mask(cut, up_from)",
            "_mm512_cmpge_epi16_mask(cut, up_from)",
            "AVX-512 compares what is cut off as signed",
        ),
        (
            "mask",
            "_mm512_testn_epi16_mask(packed, _mm512_set1_epi16(0x7fff)) == 0, 1)",
            "true, 1)",
            "bf16 denormals are zeros",
        ),
        (
            "operand",
            "kInterleave[32] = {0,  16, 1,",
            "kInterleave[32] = {16, 0,  1,",
            "order of the words that bf16 instructions make",
        ),
        (
            "precision",
            "_mm256_andnot_si256(kept, _mm256_set1_epi16(1))",
            "_mm256_and_si256(kept, _mm256_set1_epi16(1))",
            "AVX2 rounds ties to odd",
        ),
        (
            "precision",
            "_mm_andnot_si128(kept, _mm_set1_epi16(1))",
            "_mm_and_si128(kept, _mm_set1_epi16(1))",
            "the portable path rounds ties to odd",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/kernel.h",
        (
            "mask",
            "at.group == job.packed.sequences;",
            "at.group > job.packed.sequences;",
            "tokens past all sequences are rotated",
        ),
        (
            "bound",
            "std::min({most, last - flat, job.tokens - at.token})",
            "std::min({most, last - flat, job.tokens})",
            "a block of tokens goes on in the next batch entry",
        ),
        (
            "branch",
            "if (is_same != same) block.count = i;",
            "",
            "pairs with one angle, after pairs with two",
        ),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/work_sharing.h",
        ("bound", "std::min(first + chunk_, from.end)", "first + chunk_", "a thread goes on into another's tokens"),
    ),
    *in_file(
        "cpu",
        "csrc/ops/launch.h",
        ("branch", "job.operands[0].is_in_place() != job.operands[1].is_in_place()", "false",
         "one of q and k in place taken for both"),
    ),
    *in_file(
        "cpu",
        "csrc/ops/tensor_job.h",
        ("stride", "return p.size[dim] == 1 ? 0 : p.stride[dim];", "return p.stride[dim];",
         "one axis of positions read as one per batch entry"),
    ),
    *in_file(
        "cpu",
        "csrc/ops/table_job.h",
        ("stride", "has_batch && v->size[0] > 1 ? v->stride[0] : 0", "has_batch ? v->stride[0] : 0",
         "one table read as one per batch entry"),
    ),
]  # fmt: skip
