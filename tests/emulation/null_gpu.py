"""A GPU that does nothing, for the host code of a CUDA build of torch and of Triton on a machine without one.

The runtime and the driver (cuda/null_runtime.c, cuda/null_driver.c) succeed at everything; memory is the host's and no
kernel runs. :func:`environment` gives the variables with which to start a process that sees it; in that process
:class:`Runtime` and :class:`Driver` tell what was launched.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RUNTIME", "Driver", "Launch", "Runtime", "build", "environment"]

RUNTIME, DRIVER = "libnullcudart.so", "libcuda.so.1"
"""The libraries."""

_SOURCES = Path(__file__).parent / "cuda"


def build(folder: Path, cuda_headers: Path) -> Path:
    """Compile both libraries into ``folder``; ``cuda_headers`` has cuda_runtime_api.h."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, library in (("null_runtime.c", RUNTIME), ("null_driver.c", DRIVER)):
        command = ["gcc", "-O2", "-w", "-shared", "-fPIC", f"-I{cuda_headers}", "-o", str(folder / library)]
        subprocess.run([*command, str(_SOURCES / source), "-ldl"], check=True)
    return folder


def environment(folder: Path, devices: int = 1) -> dict[str, str]:
    """Variables for a process over the null GPU that :func:`build` has put into ``folder``."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "LD_PRELOAD": str(folder / RUNTIME),
        "TRITON_LIBCUDA_PATH": str(folder),
        "NULL_GPUS": str(devices),
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Launch:
    """A launch as the runtime or the driver got it.

    Attributes:
        shape: grid and block, and for the driver also the bytes of shared memory.
        stream: its handle.
        parameters: of the kernel.
        function: its handle; 0 for the runtime.
    """

    shape: tuple[int, ...]
    stream: int
    parameters: tuple[bytes, ...]
    function: int = 0


class Runtime:
    """Launches by the runtime: those of kernels that nvcc compiled."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(RUNTIME)

    @property
    def launches(self) -> int:
        """How many there have been, torch's own included."""
        return ctypes.c_ulonglong.in_dll(self._library, "null_launches").value

    def record(self, count: int) -> None:
        """Keep what launches get from now on: ``count`` bytes of parameters, 3000 at most and no more than the kernels
        have; 0 keeps nothing."""
        ctypes.c_int.in_dll(self._library, "null_records").value = count

    def last(self) -> Launch:
        """The last launch that was recorded."""
        three, library = ctypes.c_uint * 3, self._library
        shape = (*three.in_dll(library, "null_grid"), *three.in_dll(library, "null_block"))
        parameters = bytes((ctypes.c_char * 3000).in_dll(library, "null_parameters").raw)
        return Launch(shape, ctypes.c_void_p.in_dll(library, "null_stream").value or 0, (parameters,))


class Driver:
    """Launches by the driver: those of kernels that Triton compiled."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(DRIVER)
        self._count = 0

    @property
    def launches(self) -> int:
        """How many there have been."""
        return ctypes.c_ulonglong.in_dll(self._library, "null_driver_launches").value

    def expect(self, sizes: list[int]) -> None:
        """Say how many bytes each parameter of the next launches has."""
        self._count = len(sizes)
        ctypes.c_int.in_dll(self._library, "null_num_sizes").value = len(sizes)
        (ctypes.c_uint * 96).in_dll(self._library, "null_sizes")[: len(sizes)] = sizes

    def last(self) -> Launch:
        """The last launch."""
        library = self._library
        cells = ((ctypes.c_char * 8) * 96).in_dll(library, "null_driver_parameters")
        sizes = (ctypes.c_uint * 96).in_dll(library, "null_sizes")
        return Launch(
            tuple((ctypes.c_uint * 7).in_dll(library, "null_driver_shape")),
            ctypes.c_void_p.in_dll(library, "null_driver_stream").value or 0,
            tuple(bytes(cells[i].raw[: sizes[i]]) for i in range(self._count)),
            ctypes.c_void_p.in_dll(library, "null_driver_function").value or 0,
        )
