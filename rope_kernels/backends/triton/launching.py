"""What every launch of a Triton kernel is made with: its device, its options, and the wording of its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["OPTIONS", "device_of", "first_in_capture"]

OPTIONS = {"enable_fp_fusion": True}
"""Products and sums become one instruction. From Triton 3.10 on that is no longer the default."""


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the device of ``x`` the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@contextlib.contextmanager
def first_in_capture() -> Iterator[None]:
    """Words the error of a kernel that is first met while a CUDA graph is captured."""
    try:
        yield
    except RuntimeError as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "rope_kernels: the kernel of this call cannot be loaded while a CUDA graph is captured; call "
                f"rope_kernels.warm_up, or make the call once, before capturing ({error})"
            ) from None
        raise
