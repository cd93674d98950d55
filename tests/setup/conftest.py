"""What the tests of the build share: a scratch checkout, and compilers that are shell scripts."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from support.compilers import write_compiler

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "CXX", "CUDA_HOME", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "ROPE_KERNELS_NATIVE", "ROPE_KERNELS_CUDA",
    "ROPE_KERNELS_ISAS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    """The variables of the build are those that a test sets."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Make the compiler of the build a shell script, which runs ``before`` first; returns its path."""

    def make(before="", name="c++"):
        path = write_compiler(tmp_path / "tools" / name, before)
        monkeypatch.setenv("CXX", f"'{path}'")
        return path

    return make


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a wheel is built from, in a folder with a space and a letter beyond ASCII; nothing is built."""
    copy = tmp_path / "check out é"
    leave = shutil.ignore_patterns("*.so", "__pycache__", "_why_not_native.txt")
    for name in ("csrc", "native_build", "rope_kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile"):
        shutil.copy2(ROOT / name, copy / name)
    return copy
