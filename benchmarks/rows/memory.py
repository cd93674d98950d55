"""The bytes a call saves for its backward pass, and the peak memory of a step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .ours import Inputs, TimedCall

__all__ = ["peak_bytes", "saved_bytes"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(call: TimedCall, x: Inputs) -> int:
    """Bytes of the storages that autograd saves for the backward pass, without the inputs' own."""
    given = {t.untyped_storage().data_ptr() for t in x}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = call()  # kept alive until the storages are counted, so that no address is reused
    total = sum(kept.values())
    del result
    return total


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int | None:
    """The peak bytes that a step adds to the process; ``None`` on systems without a high-water mark.

    On a CPU this is Linux's high-water mark of the process, reset first, after malloc returned its reserve.
    """
    step()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")
        before = _resident("VmRSS")
        step()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS}: no {key}")
