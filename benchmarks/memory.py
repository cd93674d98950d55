"""What a call keeps for its backward pass, and the most memory that a step takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ours import Call, Inputs

__all__ = ["peak_bytes", "saved_bytes"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(call: Call, x: Inputs) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, besides the inputs' own."""
    given = {t.untyped_storage().data_ptr() for t in x}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = call()  # held until the storages are counted, so that no address comes twice
    total = sum(kept.values())
    del result
    return total


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int | None:
    """The most bytes a step takes beyond what is there before it; ``None`` where the system cannot tell.

    On a CPU from Linux's high-water mark of the process, which is reset for it, as is what malloc holds in reserve.
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
