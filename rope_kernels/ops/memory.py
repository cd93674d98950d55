"""Whether tensors overlap in memory, for the usual case; :mod:`rope_kernels.api.overlap` decides the others."""

from __future__ import annotations

from torch import Tensor

__all__ = ["are_clearly_apart"]


def are_clearly_apart(*tensors: Tensor | None) -> bool:
    """Whether all are contiguous and none overlaps another: a cheap test for the usual case."""
    spans = []
    for x in tensors:
        if x is not None:
            if not x.is_contiguous():
                return False
            spans.append((x.data_ptr(), x.nbytes))
    spans.sort()
    end = 0
    for start, size in spans:
        if start < end:
            return False
        end = start + size
    return True
