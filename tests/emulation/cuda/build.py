"""Compiles the CUDA kernels for the emulation, once per content of the sources: ``build/emulation/<name>-<hash>/``."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from filelock import FileLock

from emulation.targets import CUDA as TARGETS

__all__ = ["TARGETS", "emulated", "host", "nvcc", "ptx", "ptxas"]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "emulation"
KERNELS = CSRC / "cuda" / "kernel.cu"
CXX = ["g++", "-std=c++20", "-fPIC", f"-I{CSRC}", f"-I{HERE}"]
SANITIZE = ["-Og", "-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def nvcc() -> str | None:
    """CUDA's compiler, where setup.py looks for it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def _required_nvcc() -> str:
    found = nvcc()
    if found is None:
        raise FileNotFoundError("there is no nvcc, neither on PATH nor in CUDA_HOME")
    return found


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@cache
def _toolkit() -> dict[str, str]:
    """nvcc's own variables: ``_HERE_`` is the folder of its programs."""
    said = _said(_required_nvcc(), "--dryrun", "-c", str(KERNELS), "-o", "unused.o")
    return dict(re.findall(r"^#\$ (\w+)=(.*)$", said, re.M))


def ptxas() -> str:
    """nvcc's own assembler."""
    return str(Path(_toolkit()["_HERE_"]) / "ptxas")


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _with_includes(path: Path, seen: dict[Path, bytes]) -> None:
    if path in seen:
        return
    seen[path] = path.read_bytes()
    for name in re.findall(rb'^#include "([^"]+)"', seen[path], re.M):
        for folder in (path.parent, CSRC):
            if (folder / name.decode()).is_file():
                _with_includes(folder / name.decode(), seen)
                break


def _cached(name: str, sources: Iterable[Path], tools: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` filled from ``sources`` as they are now; made by one process, the others wait."""
    seen: dict[Path, bytes] = {}
    for path in (*sources, Path(__file__)):
        _with_includes(path, seen)
    key = hashlib.sha256()
    for path in sorted(seen):
        key.update(str(path).encode() + b"\0" + seen[path] + b"\0")
    key.update(repr([_said(tool, "--version") for tool in tools]).encode())
    folder = FOLDER / f"{name}-{key.hexdigest()[:16]}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f"{name}.lock"):
        if not folder.exists():
            unfinished = FOLDER / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            for outdated in FOLDER.glob(f"{name}-*"):
                shutil.rmtree(outdated)
            unfinished.rename(folder)
    return folder


@cache
def emulated() -> Path:
    """``libstandin.so`` (the runtime), ``launcher.so``, and ``kernel.compute_XX.ptx`` of ``TARGETS``.

    One run of nvcc makes the launcher's object and the PTX, so that the kernels' names agree.
    """
    cuda = _required_nvcc()
    runtime, launcher = HERE / "runtime.c", HERE / "launcher.cpp"

    def make(folder: Path) -> None:
        code = [f"-gencode=arch=compute_{target},code=compute_{target}" for target in TARGETS]
        flags = [
            "-std=c++20",
            "-O3",
            f"-I{CSRC}",
            "-ccbin",
            "g++",
            "-Xcompiler",
            "-fPIC",
            "-t",
            "2",
            "--keep",
            "--keep-dir",
            ".",
        ]
        _run(folder, cuda, *flags, *code, "-c", str(KERNELS), "-o", "kernels.o")
        _run(folder, "gcc", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", str(runtime), "-o", "libstandin.so")
        parts = [str(launcher), str(CSRC / "core" / "spec.cpp"), "kernels.o"]
        _run(folder, *CXX, "-O1", "-shared", *parts, "-L.", "-lstandin", "-Wl,-rpath,$ORIGIN", "-o", "launcher.so")
        for path in folder.iterdir():
            if path.suffix not in (".so", ".ptx"):
                path.unlink()

    return _cached("emulated", [KERNELS, CSRC / "core" / "spec.cpp", runtime, launcher], [cuda, "g++"], make)


def ptx(arch: int) -> str:
    """The kernels' PTX for ``arch``, one of ``TARGETS``."""
    return (emulated() / f"kernel.compute_{arch}.ptx").read_text()


@cache
def host() -> Path:
    """The kernels as plain C++ under AddressSanitizer and UBSan: a program, see ``host_main.cpp``."""
    cuda = _required_nvcc()
    sources = [KERNELS, CSRC / "core" / "spec.cpp", HERE / "host_threads.cpp", HERE / "host_main.cpp"]

    def make(folder: Path) -> None:
        headers = _toolkit()["INCLUDES"].split('"')[1].removeprefix("-I")
        flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-isystem", headers]
        begin = ["-include", str(HERE / "host.h"), "-x", "c++"]
        _run(folder, *CXX, *SANITIZE, *flags, *begin, *map(str, sources), "-o", "host")

    return _cached("host", [*sources, HERE / "host.h"], [cuda, "g++"], make) / "host"
