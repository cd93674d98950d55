"""Describes this machine: versions, processor, CUDA device, backends."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from ._version import __version__
from .backends import available_backends, choice, native, variable_error
from .ops import direct

__all__ = ["describe", "version_of"]

_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")


def version_of(package: str) -> str | None:
    """The installed version of a package, or ``None``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """The machine as values that JSON can hold.

    A version is ``None`` if the package is not installed, ``cuda_device`` if there is no device. ``backends`` maps each
    backend to ``None`` or the reason why it cannot run here. ``error`` is what makes every call fail, or ``None``.
    """
    return {
        "rope_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "transformers": version_of("transformers"),
        "platform": platform.platform(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_features": _cpu_features(),
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "native_kernels": _native_kernels(),
        "direct_calls": native.unavailable() or direct.unavailable() or "yes",
        "ROPE_KERNELS_BACKEND": choice.FROM_ENVIRONMENT,
        "backends": available_backends(),
        "error": variable_error(),
    }


def _native_kernels() -> str | None:
    if not native.isas():
        return None
    isas = ", ".join(name if name != native.isa() else f"{name} (in use)" for name in native.isas())
    archs = ", ".join(f"sm_{arch}" for arch in native.cuda_archs())
    return f"CPU: {isas}; CUDA: {archs or 'not built'}"


def _cpu_features() -> str | None:
    """The processor's features that the vectorised kernels use; ``None`` if the system does not list any."""
    flags = _cpuinfo("flags")
    return None if flags is None else ", ".join(name for name in _FEATURES if name in flags.split())


def _cpuinfo(key: str) -> str | None:
    """The first value of a key in /proc/cpuinfo."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(key):
                    return line.partition(":")[2].strip()
    return None
