"""Which GPU architectures a build has: those of csrc/cuda/architectures.txt that nvcc knows, or some of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import BuildError

__all__ = ["ARCHITECTURES", "GpuCode", "chosen_code", "code_of_gpus", "gpus_here", "listed_archs"]

ARCHITECTURES = "csrc/cuda/architectures.txt"
VARIABLE = "TORCH_CUDA_ARCH_LIST"


class GpuCode(NamedTuple):
    """What nvcc makes: machine code for ``machine``, PTX for ``ptx``; 90 is sm_90."""

    machine: list[int]
    ptx: list[int]

    def __str__(self) -> str:
        return ", ".join([*(f"sm_{arch}" for arch in self.machine), *(f"PTX of compute_{arch}" for arch in self.ptx)])


def listed_archs(root: Path) -> list[int]:
    """The GPU architectures that the project supports, in rising order."""
    return [int(line) for line in (root / ARCHITECTURES).read_text(encoding="utf-8").split("\n") if line.isdigit()]


def chosen_code(asked: str, listed: Sequence[int], known: Sequence[int]) -> GpuCode:
    """What to build for ``asked``, a value of ``TORCH_CUDA_ARCH_LIST``, or by default if it is empty.

    The default is all of ``listed`` that this nvcc knows (``known``), and PTX for the last of them; "native" is what
    the GPUs of this machine run, nothing where there is none.

    Raises:
        BuildError: ``asked`` has another form, or names an architecture that is not in ``listed`` or not in ``known``.
    """
    possible = [arch for arch in listed if arch in known]
    if not possible:
        raise BuildError(
            f"this nvcc knows none of the architectures in {ARCHITECTURES}",
            "Install CUDA 12.8 or newer, or set ROPE_KERNELS_CUDA=0 for CPU kernels alone.",
        )
    if asked.strip() == "native":
        return code_of_gpus(gpus_here(), possible)
    names = [name for name in re.split("[; ]", asked) if name]
    if not names:
        return GpuCode(possible, possible[-1:])
    code = GpuCode([], [])
    for name in names:
        arch, with_ptx = _parsed(name, listed, possible)
        code.machine.append(arch)
        if with_ptx:
            code.ptx.append(arch)
    return GpuCode(sorted({*code.machine}), sorted({*code.ptx}))


def _parsed(name: str, listed: Sequence[int], possible: Sequence[int]) -> tuple[int, bool]:
    """The architecture that one name of the variable means, and whether its PTX is asked for."""
    form = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", name)
    arch = int(form[1] + form[2]) if form else 0
    if form is None or arch not in possible:
        allowed = ", ".join(f"{arch // 10}.{arch % 10}" for arch in possible)
        why = f"this nvcc does not know sm_{arch}" if arch in listed else f"it is not in {ARCHITECTURES}"
        raise BuildError(
            f"{VARIABLE}: got '{name}': {why}; allowed are {allowed}, each also with +PTX, and native",
            f"Change {VARIABLE}, or unset it for all of them.",
        )
    return arch, form[3] is not None


def gpus_here() -> list[int]:
    """The architectures of this machine's GPUs, by nvidia-smi; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return sorted({int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", said, re.M)})


def code_of_gpus(gpus: Sequence[int], possible: Sequence[int]) -> GpuCode:
    """The newest code that each GPU runs: machine code of its own generation, or else PTX of an older one.

    GPUs that are older than all of ``possible`` get nothing.
    """
    machine: set[int] = set()
    ptx: set[int] = set()
    for gpu in gpus:
        older = [arch for arch in possible if arch <= gpu]
        if older:
            (machine if older[-1] // 10 == gpu // 10 else ptx).add(older[-1])
    return GpuCode(sorted(machine), sorted(ptx))
