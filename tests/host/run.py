"""`make host-check`: what CUDA calls do on the host, on a machine without a GPU.

Builds the GPU that does nothing and a copy of the package whose library launches on it, then runs the tests of this
folder and the table of host times.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "host"
sys.path.insert(0, str(ROOT / "tests"))

from emulation.null_gpu import RUNTIME, build, environment  # noqa: E402  (found by the line above)

DEVICES = 2


def objects() -> list[str]:
    """The object files of the library that was built for this checkout."""
    ninja = (ROOT / "build" / "native" / "build.ninja").read_text("utf-8")
    linked = re.search(r"^build _native\.so: link (.*)$", ninja, re.MULTILINE)
    if linked is None or "kernel.cu.o" not in linked[1]:
        sys.exit("host-check needs a library with CUDA kernels: nvcc, and `make .venv/.ready` before")
    return linked[1].split()


def package() -> Path:
    """A copy of the package whose library is linked to the null runtime; returns the folder that it is in."""
    where = FOLDER / "package"
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(ROOT / "rope_kernels", where / "rope_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "benchmarks", where / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    torch = Path(
        subprocess.check_output([sys.executable, "-c", "import torch; print(torch.__path__[0])"], text=True).strip()
    )
    library = where / "rope_kernels" / "_native.so"
    command = ["g++", "-shared", "-o", str(library), *objects(), f"-L{FOLDER}", f"-l:{RUNTIME}", f"-L{torch / 'lib'}"]
    subprocess.run([*command, "-ltorch_cpu", "-ldl"], check=True, cwd=ROOT / "build" / "native")
    return where


def cuda_headers() -> Path:
    """The headers of the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        homes.insert(1, str(Path(nvcc).resolve().parents[1]))
    for home in filter(None, homes):
        if Path(home, "include", "cuda_runtime_api.h").exists():
            return Path(home, "include")
    sys.exit(
        f"host-check needs the headers of the CUDA toolkit: none in {', '.join(filter(None, homes))}; set CUDA_HOME"
    )


def main() -> int:
    """Run the tests, then the table; the exit status is that of the first that fails."""
    build(FOLDER, cuda_headers())
    where = package()
    variables = environment(FOLDER, DEVICES) | {"PYTHONPATH": f"{where}:{ROOT / 'tests'}"}
    # The project's settings would put the checkout's own package first. A long traceback would print tensors, and what
    # no kernel has written decides how much that is.
    options = ["-q", "-p", "no:cacheprovider", "-o", "pythonpath=", "--tb=line"]
    tests = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests" / "host"), *sys.argv[1:]]
    table = [sys.executable, "-m", "benchmarks.host_time"]
    for command in (tests, table):
        status = subprocess.run(command, env=variables, cwd=where).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
