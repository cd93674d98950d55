"""Compile Triton kernels for a GPU that is not there, by the product's own launch code.

Inside :func:`compiling`, ``kernel[grid](...)`` compiles for a target and records the launch instead of making it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

__all__ = ["Launch", "NoDevice", "compiling", "gpu_target"]


@dataclass
class Launch:
    """One launch that was not made.

    Attributes:
        compiled: the kernel; ``asm`` has its "ptx" and "cubin", or "amdgcn".
        grid: programs along the three axes.
        arguments: by name, constants included.
    """

    compiled: CompiledKernel
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The arguments that are memory."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, torch.Tensor)}

    @property
    def scalars(self) -> list[int | float]:
        """The arguments as the compiled kernel takes them: addresses and numbers, in order."""
        kinds = self.compiled.src.signature
        values = (value for name, value in self.arguments.items() if kinds[name] != "constexpr")
        return [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]


def gpu_target(name: str) -> GPUTarget:
    """Triton's form of "sm_90" or "gfx942"."""
    if name.startswith("gfx"):
        return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)
    return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)


class NoDevice(DriverBase):
    """Says which GPU there would be; a target is a device of its own, so that Triton's caches keep them apart."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return gpu_target(self.name)

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is timed without a device")


class _Recorder:
    """Stands in for a kernel where its launch code names it."""

    def __init__(self, kernel: JITFunction, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            compiled = self.kernel.run(*args, grid=grid, warmup=True, **kwargs)
            known = {name: value for name, value in kwargs.items() if name in self.kernel.signature.parameters}
            arguments = self.kernel.signature.bind(*args, **known).arguments
            self.launches.append(Launch(compiled, (*grid, 1, 1)[:3], dict(arguments)))

        return launch


@contextlib.contextmanager
def compiling(target: str, namespace: ModuleType, *names: str) -> Iterator[list[Launch]]:
    """Compile the kernels ``names`` of a module for ``target`` ("sm_90", "gfx942"); the launches, as they come."""
    launches: list[Launch] = []
    kernels = {name: getattr(namespace, name) for name in names}
    before = driver._active
    driver.set_active(NoDevice(target))
    try:
        for name, kernel in kernels.items():
            setattr(namespace, name, _Recorder(kernel, launches))
        yield launches
    finally:
        driver._active = before
        for name, kernel in kernels.items():
            setattr(namespace, name, kernel)
