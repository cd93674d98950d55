"""Mutants of the operator's text, in Python and in C++."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "spec",
        "rope_kernels/core/spec.py",
        ("refusal", 'raise _refused(f"key {key!r}", _FIELDS, key)', "continue", "an unknown key is skipped"),
        ("refusal", "        if key in values:", "        if False:", "a key may come twice"),
        ("refusal", "        if key not in values:", "        if False:", "a missing key has no error of its own"),
        ("refusal", "        if name not in (NORMS if equals else FLAGS):", "        if False:",
         "an unknown flag is an argument's name"),
        ("bound", "        if name in given:", "        if False:", "a flag may come twice"),
        ("sign", "not operation.inverse, operation.unscaled", "operation.inverse, operation.unscaled",
         "the adjoint rotates forward"),
        ("precision", "else repr(value)", 'else f"{value:.12g}"', "doubles lose their last digits"),
    ),
    *in_file(
        "spec-cpp",
        "csrc/core/spec.cpp",
        ("refusal", "  fields.refuse_others();\n", "", "an unknown key is skipped"),
        ("refusal", "if (find(key) != nullptr) throw", "if (false) throw", "a key may come twice"),
        ("refusal", 'p.theta = number<double>("theta", fields.require("theta"));', 'fields.read("theta", p.theta);',
         "a missing key has a default"),
        ("refusal", 'refuse_unknown("flag", word, listed(kFlags) + ", " + listed(kNorms));', "return;",
         "an unknown flag is skipped"),
        ("refusal", "if (flag) throw", "if (false) throw", "a flag may come twice"),
        ("bound", "j >= 0 && j < p.num_frequencies", "j >= 0 && j <= p.num_frequencies",
         "a frequency index past the last one"),
    ),
]  # fmt: skip
