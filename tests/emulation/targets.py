"""The GPU architectures of the project, and those that are emulated: 90 is sm_90."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ARCHITECTURES", "CUDA", "TRITON", "sm"]

LIST = Path(__file__).parents[2] / "csrc" / "cuda" / "architectures.txt"
ARCHITECTURES = tuple(int(line) for line in LIST.read_text().splitlines() if line.isdigit())
"""All that the CUDA kernels are compiled for; setup.py and CMake read the same file."""
TRITON = (80, 90, 100, 120)
"""The PTX of Triton that runs in the emulator; the machine code of both kinds of kernels that has static figures."""
CUDA = (80, 90, 100)
"""The PTX of the CUDA kernels that runs in the emulator. nvcc has one front end up to 90 and another from 100 on, whose
PTX for 120 is the same."""


def sm(targets: tuple[int, ...]) -> tuple[str, ...]:
    """Names like ``sm_90``."""
    return tuple(f"sm_{target}" for target in targets)
