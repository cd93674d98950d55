"""Writes the build for ninja: every file compiled with its flags, one library linked.

Paths in the checkout are relative to the build folder, and words of a command are quoted: the checkout, the virtual
environment and torch may lie in folders with spaces or letters beyond ASCII.
"""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from .isas import FLAGS, all_isas
from .tools import OLDEST_TORCH, Toolchain, host_compiler, said_by

__all__ = ["LIBRARY", "ninja_file", "sources"]

LIBRARY = "_native.so"
CXXFLAGS = [
    "-std=c++20", "-O3", "-fPIC",
    "-fno-math-errno", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
    "-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-unused-parameter",
]  # fmt: skip
NVCCFLAGS = [
    "-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Werror=all-warnings", "-t", "2",
]  # fmt: skip
TARGET_VERSION = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}{0:012x}"


def sources(isas: Sequence[str]) -> dict[str, list[str]]:
    """C++ files without torch and the flags of their own; what takes longest comes first."""
    kernels = {f"cpu/isa/{isa}.cpp": FLAGS[isa] for isa in isas}
    chosen = []
    if list(isas) != all_isas():
        names = sorted(isas, key=["avx512_bf16", "avx512", "avx2", "portable"].index)
        chosen = [f"-DROPE_ISAS(each)={' '.join(f'each({isa})' for isa in names)}"]
        if len(isas) > 1:
            kernels["cpu/isa/portable.cpp"] = ["-O1"]  # hardly ever runs, and takes as long to compile as the others
    return kernels | {"core/spec.cpp": [], "cpu/dispatch.cpp": chosen, "cpu/scratch.cpp": []}


def _with_torch(tools: Toolchain) -> dict[str, list[str]]:
    """C++ files that include torch's or Python's headers, and the flags of their own."""
    flags = [TARGET_VERSION, "-isystem", str(tools.torch / "include")]
    names = (
        "operators",
        "norm_operators",
        "append_operators",
        "cached_operators",
        "schemas",
        "launch_cpu",
        "run",
        "choice",
        "compiled",
        "stream",
    )
    found = {f"ops/{name}.cpp": flags for name in names}
    if tools.headers:
        found["direct/module.cpp"] = [*flags, "-isystem", tools.headers]
    if tools.nvcc:
        archs = ",".join([*map(str, tools.code.machine), *(f"{arch}+PTX" for arch in tools.code.ptx)])
        found = {name: [*own, f"-DROPE_WITH_CUDA={archs}"] for name, own in found.items()}
        found["ops/launch_cuda.cpp"] = found["ops/operators.cpp"]
        found["cuda/kernel.cu"] = []
    return found


def _nvcc_command(nvcc: str, tools: Toolchain, csrc: str) -> list[str]:
    """nvcc with machine code and PTX for the chosen architectures."""
    code = [f"arch=compute_{arch},code=sm_{arch}" for arch in tools.code.machine]
    code += [f"arch=compute_{arch},code=compute_{arch}" for arch in tools.code.ptx]
    size = ["--compress-mode=size"] if "--compress-mode" in said_by(nvcc, "--help") else []
    generated = [word for each in code for word in ("-gencode", each)]
    return [nvcc, "-ccbin", host_compiler(tools.compiler), f"-I{csrc}", *NVCCFLAGS, *size, *generated]


def ninja_file(root: Path, build: Path, tools: Toolchain) -> str:
    """The text of build.ninja for the checkout ``root``; ninja runs in ``build``."""
    from ninja import ninja_syntax  # a missing one is tools.ninja's error

    def quoted(*words: str) -> str:
        return ninja_syntax.escape(shlex.join(words))

    csrc = os.path.relpath(root.resolve() / "csrc", build.resolve())
    text = io.StringIO()
    writer = ninja_syntax.Writer(text, width=1 << 20)  # type: ignore[arg-type]  # its stub has str
    compiled = {"compile": [*tools.compiler, f"-I{csrc}", *CXXFLAGS]}
    if tools.nvcc:
        compiled["cuda"] = _nvcc_command(tools.nvcc, tools, csrc)
    for rule, command in compiled.items():
        each = f"{quoted(*command)} $flags -MMD -MF $out.d -c $in -o $out"
        writer.rule(rule, each, description="compile $out", depfile="$out.d", deps="gcc")
    objects = []
    for name, flags in (sources(tools.isas) | _with_torch(tools)).items():
        objects.append(f"{name}.o")
        rule = "cuda" if name.endswith(".cu") else "compile"
        writer.build([objects[-1]], rule, [f"{csrc}/{name}"], variables={"flags": quoted(*flags)})
    link = [*tools.compiler, "-shared"]
    if tools.nvcc:
        # nvcc also beside a torch without CUDA; cudart inside, so that the library loads where there is no driver.
        link = [tools.nvcc, "-shared", "-cudart", "static", "-ccbin", host_compiler(tools.compiler)]
    libraries = quoted(f"-L{tools.torch / 'lib'}", "-ltorch_cpu")
    writer.rule("link", f"{quoted(*link)} $in -o $out {libraries}", description="link $out")
    writer.build([LIBRARY], "link", objects)
    return text.getvalue()
