"""Which instruction sets a build has CPU kernels for, and their compiler flags."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection
from pathlib import Path

from .errors import BuildError

__all__ = ["FLAGS", "all_isas", "chosen_isas", "isas_of"]

VARIABLE = "ROPE_KERNELS_ISAS"
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"]
FLAGS: dict[str, list[str]] = {
    "portable": [], "avx512": _AVX512, "avx512_bf16": [*_AVX512, "-mavx512bf16"], "avx2": _AVX2,
}  # fmt: skip
"""The flags of each instruction set; what takes longest to compile comes first."""


def all_isas() -> list[str]:
    """The instruction sets of this kind of processor."""
    return list(FLAGS) if platform.machine() in ("x86_64", "AMD64") else ["portable"]


def chosen_isas() -> list[str]:
    """All of them, or this machine's best if ``ROPE_KERNELS_ISAS`` is "native".

    Raises:
        BuildError: the variable is something else.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "native"):
        raise BuildError(f"{VARIABLE}: got {value!r}, allowed is native", f"Unset {VARIABLE} for all instruction sets.")
    return isas_of(_features()) if value and len(all_isas()) > 1 else all_isas()


def isas_of(features: Collection[str] | None) -> list[str]:
    """The best instruction sets of an x86 processor with these ``features``; all of them where it is not known.

    "portable" is always there, for a machine that the library is moved to.
    """
    if features is None:
        return list(FLAGS)
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"} <= {*features}:
        return ["avx512", *(["avx512_bf16"] if "avx512_bf16" in features else []), "portable"]
    return ["avx2", "portable"] if {"avx2", "fma", "f16c"} <= {*features} else ["portable"]


def _features() -> list[str] | None:
    """This processor's features by Linux's names, or ``None``."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", path.read_text(encoding="utf-8"), re.M) if path.exists() else None
    return found[1].split() if found else None
