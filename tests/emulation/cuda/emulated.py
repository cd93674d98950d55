"""The CUDA launcher, linked with the emulated runtime: its launches run as PTX on the emulator."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from emulation.ptx import Counts, Memory, Program, PTXError, run

from . import build
from .calls import CudaCall

__all__ = ["ILLEGAL_ADDRESS", "MULTIPROCESSORS", "SUCCESS", "Launch", "Launcher", "launcher"]

MULTIPROCESSORS = (48, 84, 108, 132)
"""Of the devices that runtime.c has, the first of which is the current one."""

SUCCESS, ILLEGAL_ADDRESS, OUT_OF_RESOURCES = 0, 700, 701
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t,
)  # fmt: skip


@dataclass
class Launch:
    """The arguments of one launch and, once it has run, the counts of what it executed."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: list[bytes]
    counts: Counts | None = None


class Launcher:
    """Calls the launcher. There is one runtime per process, so there is one of these: :func:`launcher`.

    Attributes:
        launches: of the last call.
        errors: the emulator's errors in the last call; CUDA itself would give a number only.
        stand_in: called instead of the emulator, if set; returns CUDA's number of an error.
    """

    def __init__(self) -> None:
        folder = build.emulated()
        self.runtime = ctypes.CDLL(str(folder / "libstandin.so"), mode=ctypes.RTLD_GLOBAL)
        # A torch with CUDA has loaded the real runtime globally; the launcher must find its own symbols first.
        self.library = ctypes.CDLL(str(folder / "launcher.so"), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)
        self.library.standin_launch.restype = ctypes.c_char_p
        self.programs = {arch: Program.parse(build.ptx(arch)) for arch in build.TARGETS}
        self.launches: list[Launch] = []
        self.errors: list[str] = []
        self.stand_in: Callable[[Launch], int] | None = None
        self._bug: Exception | None = None
        self._program, self._memory = self.programs[build.TARGETS[0]], Memory()
        self._callback = CALLBACK(self._on_launch)
        self.runtime.standin_on_launch(self._callback)

    def launch(self, call: CudaCall, arch: int) -> str | None:
        """Run ``call`` on the kernels for ``arch``; the launcher's error, if there is one."""
        self._program, self._memory = self.programs[arch], Memory()
        for name, tensor in call.tensors.items():
            self._memory.add_tensor(name, tensor)
        return self.launch_fields(call.spec, call.fields)

    @contextlib.contextmanager
    def on_device(self, multiprocessors: int) -> Iterator[None]:
        """Inside, a device with so many multiprocessors is current."""
        assert self.runtime.cudaSetDevice(MULTIPROCESSORS.index(multiprocessors)) == SUCCESS
        try:
            yield
        finally:
            self.runtime.cudaSetDevice(0)

    @contextlib.contextmanager
    def planning(self, multiprocessors: int) -> Iterator[None]:
        """The same, and launches succeed without being run."""
        before = self.stand_in
        self.stand_in = lambda launch: SUCCESS
        try:
            with self.on_device(multiprocessors):
                yield
        finally:
            self.stand_in = before

    def launch_fields(self, spec: str, fields: list[int]) -> str | None:
        """The same with the target and the memory of the last call."""
        self.launches, self.errors, self._bug = [], [], None
        error = self.library.standin_launch(spec.encode(), (ctypes.c_int64 * len(fields))(*fields), len(fields))
        if self._bug is not None:
            raise self._bug
        return None if error is None else error.decode()

    def _on_launch(self, name: bytes, grid: Any, block: Any, arguments: Any, shared_bytes: int) -> int:
        try:
            parameters = self._program.kernels[name.decode()].parameters
            values = [ctypes.string_at(arguments[i], parameter.size) for i, parameter in enumerate(parameters)]
            return self._run(Launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), values), shared_bytes)
        except PTXError as error:
            self.errors.append(str(error))
        except Exception as bug:  # an exception cannot pass through the launcher
            self._bug = bug
        return ILLEGAL_ADDRESS

    def _run(self, launch: Launch, shared_bytes: int) -> int:
        self.launches.append(launch)
        if self.stand_in is not None:
            return self.stand_in(launch)
        kernel = self._program.kernels[launch.kernel]
        if kernel.most_threads is not None and math.prod(launch.block) > kernel.most_threads:
            return OUT_OF_RESOURCES
        # shared memory that a kernel declares is there without being asked for
        shared_bytes += kernel.shared_bytes
        launch.counts = run(kernel, launch.grid, launch.block, launch.arguments, self._memory, shared_bytes)
        return SUCCESS


@cache
def launcher() -> Launcher:
    """The one launcher of this process, built at first use."""
    return Launcher()
