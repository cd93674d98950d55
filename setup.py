"""Builds the native extension: one shared library for every Python, through torch's stable ABI.

No Python version is compiled in: ``rope_kernels.backends.native`` loads it into torch, and it is a Python module by the
stable ABI for ``rope_kernels.ops.direct``.
Without torch in the build environment or without a compiler the package is installed without it, and says so;
``ROPE_KERNELS_BUILD=1`` makes that an error. ``TORCH_CUDA_ARCH_LIST`` chooses among the GPU architectures of
csrc/cuda/architectures.txt: ``"9.0"``, ``"8.0;9.0+PTX"``.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11, the oldest torch whose stable ABI has what is used
CXXFLAGS = [
    f"-I{ROOT / 'csrc'}", "-std=c++20", "-O3", "-fPIC",
    "-fno-math-errno", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
    "-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-unused-parameter",
]  # fmt: skip
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"]
ARCHITECTURES = "csrc/cuda/architectures.txt"
NVCCFLAGS = [
    f"-I{ROOT / 'csrc'}",
    "-std=c++20",
    "-O3",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
    "-Werror=all-warnings",
    "-t",
    "2",
]
ISAS = {"avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"], "avx2": AVX2}


class MissingToolError(Exception):
    """What the build needs and does not find."""


class GpuCode(NamedTuple):
    """What nvcc makes: machine code for ``machine``, PTX for ``ptx``; 90 is sm_90."""

    machine: list[int]
    ptx: list[int]


def sources() -> dict[str, list[str]]:
    """C++ files and the flags of their own; what takes longest comes first."""
    found: dict[str, list[str]] = {"cpu/isa/portable.cpp": []}
    if platform.machine() in ("x86_64", "AMD64"):
        found |= {f"cpu/isa/{isa}.cpp": flags for isa, flags in ISAS.items()}
    return found | {"core/spec.cpp": [], "cpu/dispatch.cpp": [], "cpu/scratch.cpp": []}


def torch_folder() -> Path:
    """Where torch's headers and libraries are."""
    try:
        import torch
    except ImportError as error:
        raise MissingToolError(
            "torch cannot be imported in the build environment (install it and pass --no-build-isolation)"
        ) from error
    return Path(torch.__file__).parent


def tool(*names: str) -> str:
    """The path of the first of ``names`` that is there."""
    beside = Path(sys.executable).parent
    for name in names:
        path = shutil.which(name) or shutil.which(name, path=str(beside))
        if path:
            return path
    raise MissingToolError(f"there is no {names[-1]}")


def nvcc() -> str | None:
    """CUDA's compiler, or ``None``; ``ROPE_KERNELS_CUDA=0`` leaves the CUDA kernels out."""
    if os.environ.get("ROPE_KERNELS_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def python_headers() -> str | None:
    """Where Python's headers are, or ``None``: without them or without a stable ABI there are no direct calls."""
    folder = sysconfig.get_path("include")
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    return folder if Path(folder, "Python.h").exists() and not free_threaded else None


def said_by(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def listed_archs() -> list[int]:
    """The GPU architectures that the project supports, in rising order."""
    return [int(line) for line in (ROOT / ARCHITECTURES).read_text().split("\n") if line.isdigit()]


def chosen_code(asked: str, listed: Sequence[int], known: Sequence[int]) -> GpuCode:
    """What to build for ``asked``, a value of ``TORCH_CUDA_ARCH_LIST``, or by default if it is empty.

    The default is all of ``listed`` that this nvcc knows (``known``), and PTX for the last of them.

    Raises:
        SystemExit: ``asked`` has another form, or names an architecture that is not in ``listed`` or not in ``known``.
    """
    possible = [arch for arch in listed if arch in known]
    names = [name for name in re.split("[; ]", asked) if name]
    if not names:
        if not possible:
            raise MissingToolError(f"this nvcc knows none of the architectures in {ARCHITECTURES}")
        return GpuCode(possible, possible[-1:])
    code = GpuCode([], [])
    for name in names:
        form = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", name)
        arch = int(form[1] + form[2]) if form else 0
        if arch not in possible:
            allowed = ", ".join(f"{arch // 10}.{arch % 10}" for arch in possible)
            why = f"this nvcc does not know sm_{arch}" if arch in listed else f"it is not in {ARCHITECTURES}"
            raise SystemExit(
                f"rope_kernels: TORCH_CUDA_ARCH_LIST: got '{name}': {why}; allowed are {allowed}, each also with +PTX"
            )
        code.machine.append(arch)
        if form[3]:
            code.ptx.append(arch)
    return GpuCode(sorted({*code.machine}), sorted({*code.ptx}))


def gpu_code(cuda: str) -> GpuCode:
    """What the nvcc ``cuda`` builds, by its own list and ``TORCH_CUDA_ARCH_LIST``."""
    known = [int(arch) for arch in re.findall(r"compute_(\d+)\b", said_by(cuda, "--list-gpu-arch"))]
    return chosen_code(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), listed_archs(), known)


def nvcc_command(cuda: str, compiler: str) -> str:
    """nvcc with machine code and PTX for the chosen architectures."""
    machine, ptx = gpu_code(cuda)
    code = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in machine]
    code += [f"-gencode arch=compute_{arch},code=compute_{arch}" for arch in ptx]
    size = ["--compress-mode=size"] if "--compress-mode" in said_by(cuda, "--help") else []
    return " ".join([cuda, "-ccbin", compiler, *NVCCFLAGS, *size, *code])


def ninja_file(library: Path, build: Path) -> str:
    """The build, for ninja: every file compiled with its flags, one library linked."""
    torch = torch_folder()
    compiler, cuda = tool(*filter(None, (os.environ.get("CXX"), "c++", "g++"))), nvcc()
    with_torch = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-isystem {torch / 'include'}"]
    names = ("operators", "launch_cpu", "run", "choice", "compiled", "stream")
    bound = {f"ops/{name}.cpp": with_torch for name in names}
    if python_headers():
        bound["direct/module.cpp"] = [*with_torch, f"-isystem {python_headers()}"]
    # nvcc also beside a torch without CUDA; cudart inside, so that the library loads where there is no driver.
    link = f"{compiler} -shared"
    if cuda:
        machine, ptx = gpu_code(cuda)
        archs = ",".join([*map(str, machine), *(f"{arch}+PTX" for arch in ptx)])
        bound = {
            name: [*flags, f"-DROPE_WITH_CUDA={archs}"]
            for name, flags in (bound | {"ops/launch_cuda.cpp": with_torch}).items()
        }
        link = f"{cuda} -shared -cudart static -ccbin {compiler}"
    lines = [
        "ninja_required_version = 1.5",
        f"rule compile\n  command = {compiler} {' '.join(CXXFLAGS)} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {link} $in -o $out -L{torch / 'lib'} -ltorch_cpu",
    ]
    objects = []
    for name, flags in (sources() | bound).items():
        objects.append(str(build / f"{name}.o"))
        lines.append(f"build {objects[-1]}: compile {ROOT / 'csrc' / name}\n  flags = {' '.join(flags)}")
    if cuda:
        objects.append(str(build / "cuda/kernel.cu.o"))
        lines.append(f"rule cuda\n  command = {nvcc_command(cuda, compiler)} -MMD -MF $out.d -c $in -o $out")
        lines.append("  depfile = $out.d\n  deps = gcc")
        lines.append(f"build {objects[-1]}: cuda {ROOT / 'csrc/cuda/kernel.cu'}")
    lines.append(f"build {library}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Builds :func:`sources` with ninja, which rebuilds what changed."""

    built = False

    def get_ext_filename(self, fullname: str) -> str:
        """The library's name, the same for every Python."""
        return f"{Path(*fullname.split('.'))}.so"

    def build_extension(self, ext: Extension) -> None:
        """Build the library, or say why not."""
        try:
            library = self._build()
        except (MissingToolError, subprocess.CalledProcessError) as error:
            if os.environ.get("ROPE_KERNELS_BUILD") == "1":
                raise SystemExit(f"rope_kernels: the native extension was not built: {error}") from error
            # An editable install would otherwise go on with what an older source built.
            (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)
            self._say(f"WITHOUT the native extension: {error}. CPU tensors will be rotated by plain torch.")
        else:
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
            self.built = True
            self._say(f"native extension built: {self._contents()}")

    def _build(self) -> Path:
        build = ROOT / "build" / "native"
        build.mkdir(parents=True, exist_ok=True)
        library = build / "_native.so"
        (build / "build.ninja").write_text(ninja_file(library, build))
        try:
            # Beside Python first: a ninja of another version would drop the folder's log and rebuild everything.
            ninja = shutil.which("ninja", path=Path(sys.executable).parent) or tool("ninja")
            subprocess.run([ninja, "-C", str(build)], check=True)
        except subprocess.CalledProcessError as error:
            if nvcc() is None or os.environ.get("ROPE_KERNELS_BUILD") == "1":
                raise
            self._say(f"the build with CUDA failed ({error}); trying without")
            os.environ["ROPE_KERNELS_CUDA"] = "0"
            return self._build()
        return library

    def _contents(self) -> str:
        cuda = nvcc()
        machine, ptx = gpu_code(cuda) if cuda else GpuCode([], [])
        isas = ", ".join(["portable", *(isa for isa in ISAS if f"cpu/isa/{isa}.cpp" in sources())])
        calls = "direct calls from Python" if python_headers() else "no direct calls (there are no headers of Python)"
        archs = ", ".join([*(f"sm_{arch}" for arch in machine), *(f"PTX of compute_{arch}" for arch in ptx)])
        return f"CPU ({isas}), {calls}, " + (f"CUDA ({archs})" if archs else "without CUDA (no nvcc was used)")

    def _say(self, text: str) -> None:
        print(f"rope_kernels: {text}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        """What a wheel takes: nothing where nothing was built."""
        return super().get_outputs() if self.built else []

    def copy_extensions_to_source(self) -> None:
        """For an editable install; there is nothing to copy where nothing was built."""
        if self.built:
            super().copy_extensions_to_source()


setup(
    ext_modules=[Extension("rope_kernels._native", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
