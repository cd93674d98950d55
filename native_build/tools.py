"""Finds what a build needs: torch, a C++ compiler, nvcc, ninja, Python's headers; says how to get what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from . import gpu_code, isas, settings
from .errors import BuildError
from .gpu_code import GpuCode

__all__ = ["OLDEST_TORCH", "Toolchain", "compiler", "find_toolchain", "ninja", "nvcc", "python_headers", "torch_folder"]

OLDEST_TORCH = (2, 11)
"""The oldest torch whose stable ABI has what is used."""
_PACKAGES = "'torch>=2.11' 'setuptools>=77' ninja"
_REMEDY = f"Run: pip install {_PACKAGES} && pip install --no-build-isolation ."
_LAUNCHERS = ("ccache", "sccache", "distcc")


class Toolchain(NamedTuple):
    """What is used for a build.

    ``compiler`` is a command, ``isas`` the CPU's instruction sets, ``torch`` torch's folder, ``headers`` the folder of
    Python.h or ``None``. Without CUDA, ``nvcc`` is ``None`` and ``no_cuda`` says why.
    """

    compiler: list[str]
    isas: list[str]
    torch: Path
    headers: str | None
    nvcc: str | None
    code: GpuCode
    no_cuda: str


def find_toolchain(root: Path) -> Toolchain:
    """Find everything for a build of the checkout ``root``.

    Raises:
        BuildError: something is missing or too old, or a variable has a wrong value.
    """
    cuda, code, no_cuda = _cuda(root)
    if cuda is None and settings.cuda_wanted():
        raise BuildError(
            f"ROPE_KERNELS_CUDA=1, but {no_cuda}",
            "Install CUDA's toolkit or set CUDA_HOME to its folder, or unset ROPE_KERNELS_CUDA for CPU kernels alone.",
        )
    return Toolchain(compiler(), isas.chosen_isas(), torch_folder(), python_headers(), cuda, code, no_cuda)


def _cuda(root: Path) -> tuple[str | None, GpuCode, str]:
    """(nvcc, what it makes, "") or (``None``, nothing, why there is no CUDA)."""
    wanted, nothing = settings.cuda_wanted(), GpuCode([], [])
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if wanted is False:
        return None, nothing, "ROPE_KERNELS_CUDA=0"
    if asked.strip() == "native" and not gpu_code.gpus_here():
        return None, nothing, "there is no GPU here"
    program = nvcc()
    if program is None:
        return None, nothing, "there is no nvcc, neither on PATH nor in CUDA_HOME"
    known = [int(arch) for arch in re.findall(r"compute_(\d+)\b", said_by(program, "--list-gpu-arch"))]
    code = gpu_code.chosen_code(asked, gpu_code.listed_archs(root), known)
    return (program, code, "") if any(code) else (None, nothing, "the GPU here is older than all that are supported")


def torch_folder() -> Path:
    """Where torch's headers and libraries are: in the build environment, or in the one that pip installs into.

    pip's isolated build hides the latter from imports; the package will run there, with the torch found there.

    Raises:
        BuildError: there is none, or it is older than 2.11.
    """
    found = importlib.util.find_spec("torch")
    folders = [Path(found.origin).parent] if found and found.origin else []
    folders += [folder / "torch" for folder in _site_folders()]
    for folder in folders:
        if (folder / "version.py").is_file() and (folder / "include").is_dir():
            _check_version(folder)
            return folder
    raise BuildError(f"there is no torch for {sys.executable}", _REMEDY)


def _site_folders() -> list[Path]:
    """Where this Python's packages are, whether or not it may import them now."""
    folders = site.getsitepackages()
    settings_file = Path(sys.prefix, "pyvenv.cfg")
    if not settings_file.is_file():
        folders.append(site.getusersitepackages())
    elif re.search(r"^include-system-site-packages\s*=\s*true", settings_file.read_text(encoding="utf-8"), re.M | re.I):
        folders += site.getsitepackages([sys.base_prefix])
    return [Path(folder) for folder in folders]


def _check_version(folder: Path) -> None:
    text = (folder / "version.py").read_text(encoding="utf-8")
    found = re.search(r"""__version__\s*=\s*['"]((\d+)\.(\d+)[^'"]*)['"]""", text)
    if found and (int(found[2]), int(found[3])) < OLDEST_TORCH:
        raise BuildError(f"torch {found[1]} in {folder} is too old: 2.11 or newer is needed", _REMEDY)


def compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, which may have arguments, or c++ or g++.

    Raises:
        BuildError: there is none.
    """
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [["c++"], ["g++"]]:
        path = shutil.which(command[0])
        if path:
            return [path, *command[1:]]
    raise BuildError(
        f"CXX: there is no {asked[0]}" if asked else "there is no C++ compiler, neither c++ nor g++",
        "Install g++ 12 or newer (Debian, Ubuntu: apt-get install g++), or set CXX to a C++20 compiler.",
    )


def host_compiler(command: list[str]) -> str:
    """The program of a compiler's command, for nvcc, which takes no launcher before it."""
    names = [word for word in command if not word.startswith("-") and Path(word).name not in _LAUNCHERS]
    return names[0] if names else command[0]


def nvcc() -> str | None:
    """CUDA's compiler, on PATH or in ``CUDA_HOME``, or ``None``."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def ninja() -> str:
    """The path of ninja.

    Raises:
        BuildError: it is not there, or its Python package, which writes the ninja file.
    """
    # Beside Python first: a ninja of another version would drop the folder's log and rebuild everything.
    found = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if found is None or importlib.util.find_spec("ninja") is None:
        raise BuildError("there is no Python package ninja", _REMEDY)
    return found


def python_headers() -> str | None:
    """Where Python's headers are, or ``None``: without them or without a stable ABI there are no direct calls."""
    folder = sysconfig.get_path("include")
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    return folder if Path(folder, "Python.h").exists() and not free_threaded else None


def said_by(*command: str) -> str:
    """What a command prints.

    Raises:
        BuildError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise BuildError(
            f"{shlex.join(command)} failed: {(done.stderr or done.stdout).strip()[:300]}",
            "Repair CUDA's toolkit, or set ROPE_KERNELS_CUDA=0 for CPU kernels alone.",
        )
    return done.stdout
