"""Tells whether strided views share memory. Views of q and k in one fused projection interleave, but share none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["has_memory", "shares_memory", "writes_twice"]


def has_memory(x: Tensor) -> bool:
    """Whether ``x`` has an address; meta and fake tensors have only a shape."""
    return not (x.is_meta or isinstance(x, FakeTensor))


def _outer(x: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of all dimensions but the last, smallest stride first, without those of size 1."""
    return sorted((x.stride(d), x.shape[d]) for d in range(x.dim() - 1) if x.shape[d] > 1)


def writes_twice(x: Tensor) -> bool:
    """Whether two elements of ``x``, whose last stride is 1, have the same address."""
    if x.numel() == 0:
        return False
    extent = x.shape[-1]
    for stride, size in _outer(x):
        if stride < extent:
            return _meet(_rows(x))
        extent += stride * (size - 1)
    return False


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether ``a`` and ``b``, neither of which overlaps itself, share memory."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    start_a, start_b = a.data_ptr(), b.data_ptr()
    if start_a + _extent(a) <= start_b or start_b + _extent(b) <= start_a:
        return False
    if _apart_in_every_token(a, b, start_b - start_a):
        return False
    return _meet(torch.cat((_rows(a), _rows(b))))


def _extent(x: Tensor) -> int:
    return (sum(stride * (size - 1) for stride, size in _outer(x)) + x.shape[-1]) * x.element_size()


def _apart_in_every_token(a: Tensor, b: Tensor, delta: int) -> bool:
    """Whether both views repeat with one stride and are side by side within it, as in a fused projection."""
    outer_a, outer_b = _outer(a), _outer(b)
    if not outer_a or not outer_b or a.element_size() != b.element_size():
        return False
    shared = {stride for stride, _ in outer_a} & {stride for stride, _ in outer_b}
    for period in sorted(shared):
        inside_a = sum(s * (n - 1) for s, n in outer_a if s < period) + a.shape[-1]
        inside_b = sum(s * (n - 1) for s, n in outer_b if s < period) + b.shape[-1]
        if any(s % period for s, _ in outer_a + outer_b if s >= period):
            continue
        gap = delta // a.element_size() % period
        if inside_a <= gap and gap + inside_b <= period:
            return True
    return False


def _rows(x: Tensor) -> Tensor:
    """(rows, 2): the first byte of every row of the last dimension and the byte after it, on the CPU."""
    size = x.element_size()
    starts = torch.tensor([x.data_ptr()], dtype=torch.int64)
    for stride, count in _outer(x):
        starts = (starts[:, None] + torch.arange(count) * (stride * size)).flatten()
    return torch.stack((starts, starts + x.shape[-1] * size), -1)


def _meet(rows: Tensor) -> bool:
    """Whether two rows share a byte."""
    rows = rows[rows[:, 0].argsort()]
    return bool((rows[1:, 0] < rows[:-1, 1]).any())
