"""Mutants of calls that store in a KV cache."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "cpu",
        "csrc/cpu/append.h",
        ("stride", "slot % slots.page_size * cache.entry", "slot % slots.page_size * cache.head",
         "entries of a page lie as far apart as heads"),
        ("branch", "    if (slot < 0) continue;\n", "", "tokens with a negative slot are stored"),
        ("bound", "last = std::min(last, packed.bound(packed.sequences));", "",
         "tokens outside all packed sequences are stored"),
        ("bound", "  last = std::min(last, slots.count);\n", "", "slots are read past their end"),
        ("order", "of_k.norms[0] = append.job.norms[1];", "of_k.norms[0] = append.job.norms[0];",
         "q's norm on k in 8 bits"),
        ("precision", "convert_heads<D>(rows.at(flat), rows.strides.head, rows.heads, norm,",
         "convert_heads<D>(rows.at(flat), rows.strides.head, rows.heads, HeadNorm(),", "v is stored unnormed"),
        ("operand", "cache.scale[h * cache.scale_stride]", "cache.scale[0]", "the first head's scale for all heads"),
        ("stride", "flat / tokens * strides.batch + flat % tokens * strides.token", "flat * strides.token",
         "sequences are read as one"),
    ),
    *in_file(
        "cpu",
        "csrc/cpu/quantise.h",
        ("precision", "((magnitude >> kShift) & 1U)", "0U", "halves are rounded down"),
        ("bound", "clamp<W>(value, -MOST, MOST)", "value", "large numbers are not clamped"),
        ("precision", "(127U + 24 - BIAS - MANTISSA) << 23", "(127U + 23 - BIAS - MANTISSA) << 23",
         "denormals have a bit too many"),
        ("branch", "value == value ? value : F<W>{}", "value", "NaN in int8"),
        ("operand", "load_as<F<W>>(x + i) / scale", "load_as<F<W>>(x + i) * (1.0F / scale)",
         "a product with the inverse"),
    ),
    *in_file(
        "cpu",
        "csrc/ops/append_job.h",
        ("bound", "if (slots[i] >= end) return false;", "if (slots[i] > end) return false;",
         "a slot just past the cache is taken"),
        ("operand", "scale->size[0] > 1 ? scale->stride[0] : 0", "true ? scale->stride[0] : 0",
         "one scale is read as one per head"),
    ),
    *in_file(
        "direct",
        "csrc/direct/append.h",
        ("refusal", "if (!to.is_nested()) return false;", "", "a cache that overlaps itself"),
        ("refusal", "if (!are_in_cache(job.append.slots)) throw NotUsual();", "", "slots past the cache are written"),
        ("state", "      count_version(a[kVCache], Py_None);\n", "", "a cache of v alone is no new version"),
    ),
]  # fmt: skip
