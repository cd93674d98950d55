"""A Triton driver for CPU tensors and no device: launches run the PTX that Triton compiles, in :mod:`emulation.ptx`.

Everything up to the PTX is Triton's own: its binder, its specialisation of arguments, its compiler. ptxas is left out;
what is loaded as a kernel's binary is its PTX.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from triton.backends import backends
from triton.runtime.driver import driver

from emulation.aot import NoDevice
from emulation.ptx import Counts, Memory, Program, PTXError, run

__all__ = ["Launch", "emulated"]

_WARP = 32
_MOST_THREADS = 1024
_CUDA = backends["nvidia"]


@dataclass(frozen=True)
class Launch:
    """A launch that was run.

    Attributes:
        name: of the kernel.
        grid: its programs.
        ptx: its PTX.
        counts: what it executed.
    """

    name: str
    grid: tuple[int, int, int]
    ptx: str
    counts: Counts


class _Compiler(_CUDA.compiler):
    """Triton's compiler for CUDA up to PTX, which stands for the cubin."""

    def make_cubin(self, src: str, metadata: dict[str, Any], opt: Any, capability: int) -> bytes:
        return src.encode()

    @lru_cache  # noqa: B019  as in the base class; there are few backends
    def hash(self) -> str:
        """Another than that of real binaries, which Triton's cache on disk may hold."""
        return f"{super().hash()}-ptx"


_EMULATED = {"nvidia": replace(_CUDA, compiler=_Compiler)}


@lru_cache(maxsize=4096)
def _program(ptx: bytes) -> Program:
    return Program.parse(ptx.decode())


class _Utils:
    """What Triton asks of a device beyond launches."""

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {"max_shared_mem": 1 << 16, "multiprocessor_count": 100, "warpSize": _WARP}

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple[object, bytes, int, int, int]:
        """(module, function, registers, spills, most threads): the function is the PTX."""
        return self, binary, 0, 0, _MOST_THREADS


class _Launcher:
    """Runs one compiled kernel. Kernels of this project need no shared memory, and get none."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.metadata = metadata
        kinds = src.signature
        self.names = [name for name in src.fn.arg_names if kinds[name] != "constexpr"]
        self.kept = [kinds[name] != "constexpr" for name in src.fn.arg_names]

    def __call__(self, x: int, y: int, z: int, stream: int, function: bytes, packed: Any, launch_metadata: Any,
                 enter_hook: Any, exit_hook: Any, *args: Any) -> None:  # fmt: skip
        if self.metadata.shared:
            raise PTXError(f"{self.metadata.name} wants {self.metadata.shared} bytes of shared memory")
        values = [value for value, kept in zip(args, self.kept, strict=True) if kept]
        memory = Memory()
        for name, value in zip(self.names, values, strict=True):
            if isinstance(value, torch.Tensor):
                memory.add_tensor(name, value)
        kernel = _program(function).kernels[self.metadata.name]
        addresses = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]
        scratch = [0] * (len(kernel.parameters) - len(values))  # two pointers of Triton's, which these kernels ignore
        block = (_WARP * self.metadata.num_warps,)
        counts = run(kernel, (x, y, z), block, [*addresses, *scratch], memory)
        driver.active.launches.append(Launch(self.metadata.name, (x, y, z), function.decode(), counts))


class _Driver(NoDevice):
    """As without a device, but launches run."""

    utils = _Utils()
    launcher_cls = _Launcher

    def __init__(self, capability: int) -> None:
        super().__init__(f"sm_{capability}")
        self.launches: list[Launch] = []

    def get_current_device(self) -> str:
        return f"emulated {self.name}"


@contextlib.contextmanager
def emulated(capability: int) -> Iterator[list[Launch]]:
    """Inside, Triton kernels take CPU tensors and run as the PTX for ``capability`` (80, 90, 100, 120).

    Yields:
        the launches so far.
    """
    before = driver._active
    device = _Driver(capability)
    with mock.patch.dict(backends, _EMULATED):
        driver.set_active(device)
        try:
            yield device.launches
        finally:
            driver._active = before
