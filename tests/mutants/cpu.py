"""Mutants of the CPU kernels."""

from .mutant import in_file

__all__ = ["MUTANTS"]

_HEADS = in_file(
    "cpu",
    "csrc/cpu/heads.h",
    (
        "const F<W> p = a * load_as<F<W>>(cosine + i) - b * load_as<F<W>>(sine + i);",
        "const F<W> p = a * load_as<F<W>>(cosine + i) + b * load_as<F<W>>(sine + i);",
        "sign of the sine",
    ),
    ("D::narrow(a * cosine[i] - b * sine[i])", "D::narrow(a * cosine[i] + b * sine[i])",
     "sign of the sine, pairs that fill no vector"),
    ("const bool aside = READ != WRITE && job.in_place;", "const bool aside = false;",
     "pairs written in place over those still to be read"),
    ("const int start = 2 * part * r.distance,", "const int start = part * r.distance,", "distance between blocks"),
    ("p[j] = a * cosine[j] - b * sine[j];", "p[j] = a * cosine[j] + b * sine[j];", "sign of the sine, usual heads"),
    ("store_members<D, W, WRITE, STREAM>(y, y + distance,", "store_members<D, W, WRITE, STREAM>(y, y + PAIRS,",
     "where second members of usual heads are stored"),
    ("kWhole = READ != WRITE || 4", "kWhole = 4",
     "usual pairs written in place over those still to be read"),
    ("load_as<F<W>>(cosine2 + i) + a *", "load_as<F<W>>(cosine + i) + a *", "a table's cosines of second members"),
)  # fmt: skip

_WORDS = in_file(
    "cpu",
    "csrc/cpu/words.h",
    ("BFloat16::narrow(b * c + a * s)", "BFloat16::narrow(b * c - a * s)",
     "sign of the sine, words that fill no vector"),
    ("(1U << count) - 1U", "(1U << (count - 1)) - 1U", "last word of a masked vector"),
    ("store_as<STREAM>(y + distance + 2 * j * L, b);", "store_as<STREAM>(y + 2 * WORDS + 2 * j * L, b);",
     "where second halves are stored"),
)  # fmt: skip

_UNTOUCHED = in_file(
    "cpu",
    "csrc/cpu/untouched.h",
    ("for (int i = 0; !job.in_place && i < job.num_operands", "for (int i = 0; job.in_place && i < job.num_operands",
     "what is not rotated is not copied"),
    ("const std::int64_t width = span.last - span.first;", "const std::int64_t width = span.last - span.first - 1;",
     "last channel of those that are not rotated is not copied"),
)  # fmt: skip

_COS_SIN = in_file(
    "cpu",
    "csrc/cpu/cos_sin.h",
    ("std::min(kBlockFloats / step_, kBlockTokens)", "kBlockTokens", "long heads' cosines over the sines"),
)

_TRAVERSAL = in_file(
    "cpu",
    "csrc/cpu/traversal.h",
    ("while (n % (bytes / 4) != 0)", "while (n < bytes / 4)", "pairs that fill no whole number of vectors"),
    ("y + h * operand.to.head + j * operand.to.token,", "y + h * operand.to.head + j * operand.from.token,",
     "where a run of a head's tokens is stored"),
    ("std::min(first + runs, operand.heads)", "std::min(first + runs, operand.heads - 1)",
     "last head of those before tokens"),
)  # fmt: skip

_TABLE = in_file(
    "cpu",
    "csrc/cpu/table.h",
    ("~is_number & 0x7fc00000U", "~is_number & 0x7fffffffU", "a table's NaN is rounded up to another number"),
    ("cos_sin.sine()[i] = -cos_sin.second_sine()[i];", "cos_sin.sine()[i] = -s;",
     "adjoint by a table whose halves differ"),
    ("std::memcmp(cos_sin.sine(), cos_sin.second_sine(), bytes) == 0;", "true;",
     "members that differ in their sines alone"),
    ("cos_sin.cosine, cos_sin.cosine + words);", "cos_sin.cosine, cos_sin.cosine + num_pairs);",
     "cosines of second elements"),
)  # fmt: skip

_ANGLES = in_file(
    "cpu",
    "csrc/cpu/angles.h",
    ("integer && r.axis.empty() && r.phase", "integer && r.phase", "several axes taken for one"),
    ("if (job.packed.bound(middle) <= at.token)", "if (job.packed.bound(middle) < at.token)",
     "first token of a sequence belongs to the one before"),
    ("if (at.group == work.group) return;", "if (work.group >= 0) return;",
     "all sequences have the length of the first"),
    ("if (p1 != 0) product += of_low * p1;", "", "upper half of the position, and so negative ones"),
    ("_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd)", "_mm512_srli_epi64(even, 32)",
     "AVX-512 takes the lower halves of odd lanes' frequencies for nothing"),
    ("_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa)", "_mm256_srli_epi64(even, 32)",
     "AVX2 takes the lower halves of odd lanes' frequencies for nothing"),
    (" - (work.from != nullptr ? phase(*work.from) : 0U);", " + (work.from != nullptr ? phase(*work.from) : 0U);",
     "difference of the phases at two lengths"),
    ("s_scale = job.inverse ? -work.scaling : work.scaling;", "s_scale = work.scaling;", "inverse is forward"),
    ("if (!std::isfinite(real)) {", "if (std::isnan(real)) {", "infinite positions have an angle"),
    ("cos_sin.sine()[pair] = cos_sin.cosine[pair] =", "cos_sin.sine()[0] = cos_sin.cosine[0] =",
     "another pair loses its angle than the one that turns by the position"),
    ("row * p.axis + at.batch * p.batch", "row * p.token + at.batch * p.batch", "stride of the axes"),
    ("work.scaling = job.unscaled ? 1.0F :", "work.scaling = job.inverse ? 1.0F :", "scaling left out of the inverse"),
)  # fmt: skip

_FLOATS = in_file(
    "cpu",
    "csrc/cpu/floats.h",
    ("return bits + 0x7fffU + ((bits >> 16) & 1U);", "return bits;", "bf16 truncated"),
    ("* 5.192296858534828e+33F", "* 2.596148429267414e+33F", "fp16 halved where there is no instruction"),
    ("0x38800000) ? normal : denormal", "0x38800000) ? normal : normal",
     "denormal fp16 results"),
    ("first = __builtin_shufflevector(a, b, 0, 2, 4, 6);", "first = __builtin_shufflevector(a, b, 0, 1, 4, 5);",
     "first members of neighbouring fp32 pairs"),
    ("0x3333333333333333, a, swapped)", "0xcccccccccccccccc, a, swapped)", "order of AVX-512's words"),
    ("kOrNot = 0xae;", "kOrNot = 0xea;", "AVX-512 rounds ties to odd"),
    ("_mm512_cmpge_epu16_mask(cut, up_from)", "_mm512_cmpgt_epu16_mask(cut, up_from)", "AVX-512 rounds ties down"),
    ("_mm512_cmpge_epu16_mask(cut, up_from)", "_mm512_cmpge_epi16_mask(cut, up_from)",
     "AVX-512 compares what is cut off as signed"),
    ("_mm512_testn_epi16_mask(packed, _mm512_set1_epi16(0x7fff)) == 0, 1)", "true, 1)", "bf16 denormals are zeros"),
    ("kInterleave[32] = {0,  16, 1,", "kInterleave[32] = {16, 0,  1,",
     "order of the words that bf16 instructions make"),
    ("_mm256_andnot_si256(kept, _mm256_set1_epi16(1))", "_mm256_and_si256(kept, _mm256_set1_epi16(1))",
     "AVX2 rounds ties to odd"),
    ("_mm_andnot_si128(kept, _mm_set1_epi16(1))", "_mm_and_si128(kept, _mm_set1_epi16(1))",
     "the portable path rounds ties to odd"),
    ("_mm256_subs_epu16(cut, is_even)", "_mm256_sub_epi16(cut, is_even)", "AVX2 rounds exact values up"),
)  # fmt: skip

_KERNEL = in_file(
    "cpu",
    "csrc/cpu/kernel.h",
    ("at.group == job.packed.sequences;", "at.group > job.packed.sequences;", "tokens past all sequences turn"),
    ("std::min({most, last - flat, job.tokens - at.token})", "std::min({most, last - flat, job.tokens})",
     "a block of tokens goes on in the next row of the batch"),
    ("if (is_same != same) block.count = i;", "", "pairs whose members turn by the same, after ones which do not"),
)  # fmt: skip

MUTANTS = [*_HEADS, *_WORDS, *_COS_SIN, *_TRAVERSAL, *_UNTOUCHED, *_TABLE, *_ANGLES, *_FLOATS, *_KERNEL]
