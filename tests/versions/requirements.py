"""What the environments of `make test-oldest` and `make test-newest` hold: ``requirements.py oldest|newest``.

The oldest one has exactly the versions that pyproject.toml declares as minima, and the newest releases of the tools of
the tests. The newest one has the newest torch and Triton, and everything else as requirements.txt pins it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["NOT_TESTED", "minima", "newest", "oldest"]

ROOT = Path(__file__).parents[2]
TOOLS = ("cmake", "hypothesis", "mpmath", "numpy", "pybind11", "pytest-xdist", "pyyaml")
NOT_TESTED = ("onnx", "onnxruntime")
"""Peers of the benchmarks, which no test calls."""
FREE = ("setuptools", "torch", "triton")
"""In the newest environment; torch says which setuptools it needs."""


def minima() -> dict[str, str]:
    """The version that pyproject.toml declares for each package, such as "2.11" for torch.

    Raises:
        ValueError: it declares two for one package.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', text):
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name}: pyproject.toml declares {found[name]} and {version}")
    return found


def _on_linux(requirement: str) -> str:
    return f'{requirement}; sys_platform == "linux"' if requirement.startswith("triton") else requirement


def oldest() -> list[str]:
    """Requirements, as pip takes them."""
    declared = (f"{name}=={version}" for name, version in minima().items() if name not in NOT_TESTED)
    return [*map(_on_linux, declared), *TOOLS]


def newest() -> list[str]:
    """Requirements, as pip takes them."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if "==" in line and line.partition("==")[0] not in FREE]
    return [*map(_on_linux, FREE), *pinned]


if __name__ == "__main__":
    print("\n".join({"oldest": oldest, "newest": newest}[sys.argv[1]]()))
