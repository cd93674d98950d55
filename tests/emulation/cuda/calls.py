"""A case as the CUDA launcher takes it: integers in the order of call.h, and the memory that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from calls import arguments
from torch import Tensor

from cases import Case, Made, check, make, strided
from rope_kernels import ops
from rope_kernels.backends.inputs import Inputs

__all__ = ["Attempt", "CudaCall", "cuda_call"]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NUMBERS = {
    torch.int32: 1, torch.int64: 2, torch.float16: 3, torch.bfloat16: 4, torch.float32: 5, torch.float64: 6,
}  # fmt: skip


@dataclass
class CudaCall:
    """``fields`` is rope::Job as integers, ``tensors`` what it points to, by name."""

    spec: str
    fields: list[int]
    tensors: dict[str, Tensor]


def _rows(x: Tensor | None, y: Tensor | None) -> list[int]:
    if x is None or y is None:
        return [0] * 9
    return [x.data_ptr(), y.data_ptr(), x.shape[2], *x.stride()[:3], *y.stride()[:3]]


def _positions(p: Tensor | None) -> list[int]:
    if p is None:
        return [0] * 5
    axis, batch = (stride if size > 1 else 0 for size, stride in zip(p.shape[:2], p.stride()[:2], strict=True))
    return [p.data_ptr(), NUMBERS[p.dtype], axis, batch, p.stride(2)]


def _per_group(t: Tensor | None) -> list[int]:
    return [0, 0, 0] if t is None else [t.data_ptr(), t.numel(), t.stride(0)]


def _packed(c: Tensor | None) -> list[int]:
    return [0, 0, 0, 1] if c is None else [c.data_ptr(), int(c.dtype == torch.int64), c.shape[0] - 1, c.stride(0)]


def _read_only(inputs: Inputs) -> dict[str, Tensor]:
    names = ("positions", "offset", "seq_len", "from_seq_len", "cu_seqlens")
    found = {name: getattr(inputs, name) for name in names}
    return {name: t for name, t in found.items() if t is not None and t.numel()}


def cuda_call(sides: Sequence[tuple[Tensor | None, Tensor | None]], inputs: Inputs, spec: str, layout: str) -> CudaCall:
    """The call that rotates each (input, output) of ``sides``, q and k in ``layout``; as ``inputs`` say."""
    rows = [tuple(None if t is None else ops.tokens_first(t, layout) for t in side) for side in sides]
    q, q_out = rows[0]
    assert q is not None
    assert q_out is not None
    in_place = q.data_ptr() == q_out.data_ptr()
    present = sum(x is not None for x, _ in rows)
    fields = [present, DTYPES[q.dtype], *q.shape[:2], int(inputs.inverse), int(inputs.unscaled), int(in_place)]
    for side in rows:
        fields += _rows(*side)
    fields += _positions(inputs.positions)
    for per_group in (inputs.offset, inputs.seq_len, inputs.from_seq_len):
        fields += _per_group(per_group)
    fields += _packed(inputs.cu_seqlens)
    tensors = _read_only(inputs)
    for name, (x, y) in zip("qk", sides, strict=True):
        if x is not None and y is not None and x.numel():
            tensors |= {name: x} if in_place else {name: x, f"{name}_out": y}
    return CudaCall(spec, fields, tensors)


def _around(x: Tensor) -> Tensor:
    """The bits of all that ``x``'s storage holds outside of ``x``."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).clone()
    whole.as_strided(x.shape, x.stride(), x.storage_offset()).zero_()
    return whole.view(torch.uint8)


def _bits(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@dataclass
class Attempt:
    """A case about to be rotated in place or into NaN; :meth:`check` is for afterwards.

    ``made``: its tensors, if they are not simply the case's.
    """

    case: Case
    in_place: bool
    made: Made | None = None
    call: CudaCall = field(init=False)

    def __post_init__(self) -> None:
        made = self.made or make(self.case)
        *run_time, spec, layout, inverse, unscaled = arguments(self.case, made)
        self.expected = [y for y in made.expected if y is not None]
        self.inputs = [x for x in (made.q, made.k) if x is not None]
        self.before = [x.clone() for x in self.inputs]
        self.outputs = self.inputs if self.in_place else [self._nan_like(x) for x in self.inputs]
        self.around = [_around(y) for y in self.outputs]
        self.index_tensors = [(t, t.clone()) for t in run_time if t is not None]
        sides = [*zip(self.inputs, self.outputs, strict=True), (None, None)][:2]
        self.call = cuda_call(sides, ops.inputs_of(run_time, layout, inverse, unscaled), spec, layout)

    def __str__(self) -> str:
        return f"{self.case} {'in place' if self.in_place else 'apart'}"

    def _nan_like(self, x: Tensor) -> Tensor:
        """NaN in another layout than ``x``, so that strides cannot be taken for each other."""
        other = "fused" if self.case.view == "dense" else "dense"
        return strided(torch.full_like(x, float("nan"), memory_format=torch.contiguous_format), other)

    def check(self) -> None:
        """Assert that the outputs are right, and that nothing else was written."""
        for x, y, expected in zip(self.before, self.outputs, self.expected, strict=True):
            check(self.case, x, y, expected)
        self.check_the_rest()

    def check_the_rest(self) -> None:
        """Assert that nothing but the outputs was written."""
        for y, around in zip(self.outputs, self.around, strict=True):
            assert torch.equal(_around(y), around), f"{self}: written outside of the output"
        read_only = list(self.index_tensors)
        if not self.in_place:
            read_only += zip(self.inputs, self.before, strict=True)
        for x, before in read_only:
            assert torch.equal(_bits(x), _bits(before)), f"{self}: an input was written"
