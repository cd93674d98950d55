"""A case as the CUDA launcher takes it: integers in the order of call.h, and the tensors that they point to."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from support.attempts import Attempt
from support.calls import inputs
from support.cases import Case, Made
from torch import Tensor

from rope_kernels.backends.inputs import Append, Inputs, Norms
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.norms import Norm
from rope_kernels.core.spec import parse_text

__all__ = ["CudaAttempt", "CudaCall", "Gradient", "cuda_call", "numbers_of"]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NUMBERS = {
    torch.int32: 1, torch.int64: 2, torch.float16: 3, torch.bfloat16: 4, torch.float32: 5, torch.float64: 6,
}  # fmt: skip
STORED = {torch.float8_e4m3fn: 1, torch.float8_e5m2: 2, torch.int8: 3}
_K_OUT = 7 + 9 + 1
"""The field of k's output."""
_NO_TABLE = [0] * 10
_NO_NORMS = [0] * 25
_NO_CACHE = [0] * 39


class Gradient(NamedTuple):
    """Of q or k: the heads that were normed, (batch, tokens, heads, head_dim), and parts of the weight's gradient."""

    x: Tensor
    partials: Tensor | None


@dataclass
class CudaCall:
    """``fields`` is rope::Job and rope::Append as integers, ``tensors`` what they point to, by name; ``numbers`` too,
    but the kernel must not read them."""

    spec: str
    fields: list[int]
    tensors: dict[str, Tensor]
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def _put(self, numbers: list[int], behind: int) -> None:
        """Replace as many fields, in front of the last ``behind``."""
        end = len(self.fields) - behind
        self.fields[end - len(numbers) : end] = numbers

    def put_table(self, table: list[int]) -> None:
        """Make it a call by a table."""
        self._put(table, len(_NO_NORMS + _NO_CACHE))

    def put_norms(self, norms: Norms, gradients: Sequence[Gradient | None] = (None, None), parts: int = 0) -> None:
        """Norm the heads as well; or, in so many ``parts``, take the call's inputs and outputs as gradients."""
        each = zip(norms[:2], norms[2:], gradients, strict=True)
        self._put([*(number for norm in each for number in _norm(*norm)), parts], len(_NO_CACHE))
        self.tensors |= {f"{side}_weight": w for side, w in zip("qk", norms[2:], strict=True) if w is not None}
        for side, gradient in zip("qk", gradients, strict=True):
            if gradient is not None:
                self.tensors[f"{side}_x"] = gradient.x
                if gradient.partials is not None:
                    self.tensors[f"{side}_partials"] = gradient.partials

    def put_cache(self, append: Append, has_k_out: bool) -> None:
        """Store k and v as well: without ``has_k_out``, k in the cache alone."""
        a = append
        one = a.k_cache if a.k_cache is not None else a.v_cache
        assert one is not None
        slots = [a.slots.data_ptr(), int(a.slots.dtype == torch.int64), a.slots.stride(0), a.slots.shape[0]]
        v = [0] * 6 if a.v is None else [a.v.data_ptr(), *a.v.shape[2:], *a.v.stride()[:3]]
        sides = (a.k_cache, a.k_scale), (a.v_cache, a.v_scale)
        caches = [number for side in sides for number in _cache(*side)]
        self._put([1, *caches, *slots, *one.shape[:2], *v, *_norm(a.v_norm, a.v_weight, None)], 0)
        if not has_k_out:
            self.fields[_K_OUT] = 0
        known = {"slots": a.slots, "v": a.v, "v_weight": a.v_weight, "k_scale": a.k_scale, "v_scale": a.v_scale}
        self.tensors |= {name: t for name, t in known.items() if t is not None}


def _cache(cache: Tensor | None, scale: Tensor | None) -> list[int]:
    if cache is None:
        return [0] * 7
    stored = STORED.get(cache.dtype, 0)
    where = [0, 0] if scale is None else [scale.data_ptr(), scale.stride(0) if scale.shape[0] > 1 else 0]
    return [cache.data_ptr(), *cache.stride()[:3], stored, *where]


def _float_bits(x: float) -> int:
    (value,) = struct.unpack("<I", struct.pack("<f", x))
    return int(value)


def _norm(norm: Norm | None, weight: Tensor | None, gradient: Gradient | None) -> list[int]:
    numbers = [0] * 7
    if norm is not None:
        where = [0, NUMBERS[torch.float32], 1]
        if weight is not None:
            where = [weight.data_ptr(), NUMBERS[weight.dtype], weight.stride(0)]
        numbers = [1, int(norm.after_rope), _float_bits(norm.eps), *where, _float_bits(norm.weight_offset)]
    if gradient is None:
        return [*numbers, *[0] * 5]
    partials = 0 if gradient.partials is None else gradient.partials.data_ptr()
    return [*numbers, gradient.x.data_ptr(), *gradient.x.stride()[:3], partials]


def _operand(x: Tensor | None, y: Tensor | None) -> list[int]:
    if x is None or y is None:
        return [0] * 9
    return [x.data_ptr(), y.data_ptr(), x.shape[2], *x.stride()[:3], *y.stride()[:3]]


def _positions(p: Tensor | None) -> list[int]:
    if p is None:
        return [0] * 5
    axis, batch = (stride if size > 1 else 0 for size, stride in zip(p.shape[:2], p.stride()[:2], strict=True))
    return [p.data_ptr(), NUMBERS[p.dtype], axis, batch, p.stride(2)]


def _per_group(t: Tensor | None, is_number: bool) -> list[int]:
    return [0, 0, 0, 0] if t is None else [t.data_ptr(), t.numel(), t.stride(0), int(is_number)]


def _packed(c: Tensor | None) -> list[int]:
    return [0, 0, 0, 1] if c is None else [c.data_ptr(), int(c.dtype == torch.int64), c.shape[0] - 1, c.stride(0)]


def _read_only(given: Inputs) -> dict[str, Tensor]:
    names = ("positions", "offset", "seq_len", "from_seq_len", "cu_seqlens")
    found = {name: getattr(given, name) for name in names}
    return {name: t for name, t in found.items() if t is not None and t.numel()}


def cuda_call(
    sides: Sequence[tuple[Tensor | None, Tensor | None]], given: Inputs, spec: str, layout: str,
    numbers: Sequence[str] = (),
) -> CudaCall:  # fmt: skip
    """The call that rotates each (input, output) of ``sides``, q and k in ``layout``, with the inputs ``given``.

    ``numbers``: the names of those that are ints instead of tensors on the device.
    """
    operands = [tuple(None if t is None else tokens_first(t, layout) for t in side) for side in sides]
    q, q_out = operands[0]
    assert q is not None
    assert q_out is not None
    in_place = q.data_ptr() == q_out.data_ptr()
    present = sum(x is not None for x, _ in operands)
    fields = [present, DTYPES[q.dtype], *q.shape[:2], int(given.inverse), int(given.unscaled), int(in_place)]
    for side in operands:
        fields += _operand(*side)
    fields += _positions(given.positions)
    for name in ("offset", "seq_len", "from_seq_len"):
        fields += _per_group(getattr(given, name), name in numbers)
    fields += [*_packed(given.cu_seqlens), *_NO_TABLE, *_NO_NORMS, *_NO_CACHE]
    tensors = _read_only(given)
    for name, (x, y) in zip("qk", sides, strict=True):
        if x is not None and y is not None and x.numel():
            tensors |= {name: x} if in_place else {name: x, f"{name}_out": y}
    return CudaCall(spec, fields, tensors, {name: tensors.pop(name) for name in numbers})


def numbers_of(given: Inputs) -> list[str]:
    """Which of a call's offset and seq_len are one number for all."""
    values = {"offset": given.offset, "seq_len": given.seq_len}
    return [name for name, value in values.items() if value is not None and value.numel() == 1]


class CudaAttempt(Attempt):
    """An attempt at a case by the launcher: its ``call``.

    Outputs have other strides than inputs, so that a mix-up of the two shows. ``with_numbers``: an offset or seq_len
    that is one number for all is passed as an int.
    """

    def __init__(
        self,
        case: Case,
        in_place: bool,
        made: Made | None = None,
        atol: float | None = None,
        with_numbers: bool = False,
    ) -> None:
        super().__init__(case, in_place, made, "fused" if case.view == "dense" else "dense", atol)
        operation = parse_text(self.arguments.text)
        given = inputs(self.arguments)
        numbers = numbers_of(given) if with_numbers else []
        self.call = cuda_call(self.sides, given, operation.spec.encode(), operation.layout, numbers)
