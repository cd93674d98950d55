"""Calls by a caller's table as the CUDA launcher takes them, and what must come of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from support import tolerances
from support.attempts import bits, gaps
from support.cases import strided
from torch import Tensor

from rope_kernels.backends import reference
from rope_kernels.backends.inputs import Inputs
from rope_kernels.core.layouts import tokens_first
from rope_kernels.ops.operators import table_rotation

from .calls import NUMBERS, cuda_call

__all__ = ["SOME_TABLES", "TABLES", "TableAttempt", "TableCase"]

_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
_PAIRINGS = ("half", "interleaved", "interleaved_to_half")


@dataclass(frozen=True)
class TableCase:
    """A call: q (batch, tokens, heads) in ``layout``, and its table.

    Attributes:
        width: channels that are rotated.
        batch_of_table: of cos and sin, 1 or that of q.
        spread: from an entry of the table to the next, in entries.
        shift: entries before the table's first, so that it is aligned to no more than an entry.
        gap: entries between the rows of two tokens, so that one may be aligned to less than another.
        view: how q and k lie in memory, one of those of ``support.cases.strided``.
        nan: whether some entries are NaN.
        rows: if given, the table has so many rows of an entry per pair, and positions, some without a row, name them.
    """

    dtype: torch.dtype = torch.float32
    table_dtype: torch.dtype = torch.float32
    head_dim: int = 64
    width: int = 64
    pairing: str = "half"
    inverse: bool = False
    layout: str = "bshd"
    batch: int = 2
    tokens: int = 3
    heads: tuple[int, int] = (4, 2)
    batch_of_table: int = 1
    spread: int = 1
    shift: int = 0
    gap: int = 0
    view: str = "dense"
    nan: bool = False
    rows: int = 0

    def __str__(self) -> str:
        dtypes = f"{str(self.dtype)[6:]}-{str(self.table_dtype)[6:]}"
        kind = "-inverse" if self.inverse else f"-{self.rows}rows" if self.rows else ""
        return f"{dtypes}-{self.width}of{self.head_dim}-{self.pairing}{kind}"


_CACHED = [
    TableCase(dtype, table_dtype, *shape, pairing, rows=9, view=view, gap=gap)
    for (dtype, view, gap), table_dtype, shape, pairing in product(
        ((torch.float32, "dense", 0), (torch.float16, "odd", 1), (torch.bfloat16, "dense", 3)),
        (torch.float32, torch.bfloat16),
        ((64, 64), (96, 32), (80, 18)),
        ("half", "interleaved"),
    )
]
TABLES = [
    TableCase(dtype, table_dtype, *shape, pairing, inverse, batch_of_table=1 + inverse)
    for dtype, table_dtype, shape, pairing, inverse in product(
        _DIGITS, (*_DIGITS, torch.float64), ((64, 64), (96, 32), (72, 72), (80, 18)), _PAIRINGS, (False, True)
    )
]
SOME_TABLES = [
    *TABLES[::7],
    *_CACHED,
    TableCase(torch.bfloat16, torch.bfloat16, 128, 128, layout="thd", batch=1, tokens=11, heads=(33, 0), rows=5),
    TableCase(torch.bfloat16, torch.bfloat16, 128, 128, layout="bhsd", rows=1),
    TableCase(layout="bhsd", spread=3, batch_of_table=2),
    TableCase(torch.bfloat16, torch.bfloat16, layout="thd", batch=1, shift=1),
    TableCase(torch.bfloat16, torch.bfloat16, gap=3),
    TableCase(torch.bfloat16, torch.bfloat16, gap=4),
    TableCase(torch.float32, torch.float16, pairing="interleaved", gap=2, inverse=True),
    TableCase(torch.float16, torch.float64, pairing="interleaved", view="odd", nan=True),
    TableCase(torch.bfloat16, torch.float32, 128, 128, heads=(33, 0), tokens=9, nan=True),
    TableCase(torch.bfloat16, torch.bfloat16, 256, 256, "interleaved", True, batch=3, tokens=1, batch_of_table=3),
    TableCase(torch.float32, torch.float16, 2048, 2048, tokens=1, heads=(2, 1)),
    TableCase(batch=0),
    TableCase(tokens=0),
]
"""Every value of each field."""


def _placed(values: Tensor, case: TableCase) -> Tensor:
    """The values of a table in memory of their own, spread and shifted; what is between them is NaN."""
    batch, tokens, width = values.shape
    row = width * case.spread + case.gap
    memory = torch.full((case.shift + batch * tokens * row + 1,), float("nan"), dtype=values.dtype)
    strides = (tokens * row, row, case.spread)
    return memory.as_strided(values.shape, strides, case.shift).copy_(values)


class TableAttempt:
    """A call about to be made: its ``call``, in place or into NaN; :meth:`check` is for afterwards."""

    def __init__(self, case: TableCase, in_place: bool) -> None:
        self.case, self.in_place = case, in_place
        generator = torch.Generator().manual_seed(case.head_dim + case.width)
        inner = (case.batch, case.tokens)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        made = [random(*inner, heads, case.head_dim).to(case.dtype) for heads in case.heads if heads]
        if case.layout == "bhsd":
            made = [x.transpose(1, 2).contiguous() for x in made]
        self.inputs = [strided(x[0] if case.layout == "thd" else x, case.view) for x in made]
        shape = (1, case.rows, case.width // 2) if case.rows else (case.batch_of_table, case.tokens, case.width)
        self.table = [random(*shape).to(case.table_dtype) for _ in range(2)]
        kind = torch.int32 if case.heads[1] else torch.int64
        self.positions = torch.randint(-2, case.rows + 2, inner, generator=generator, dtype=kind) if case.rows else None
        if case.nan:
            self.table[0][0, 0, 1] = self.table[1][-1, -1, -1] = float("nan")
        self.table = [_placed(t, case) for t in self.table]
        self.before = [x.clone() for x in self.inputs]
        self.outputs = self.inputs if in_place else [self._nan_like(x) for x in self.inputs]
        self._around = [gaps(y) for y in self.outputs]
        self._read_only = [(x, x.clone()) for x in self.table]
        if not in_place:
            self._read_only += zip(self.inputs, self.before, strict=True)
        pairs = case.width // 2
        spec = f"theta=1.0;freq_dim=2;num_frequencies={pairs};head_dim={case.head_dim};num_pairs={pairs};"
        spec += f"distance={pairs};pairing={case.pairing}"
        sides = [*zip(self.inputs, self.outputs, strict=True), (None, None)][:2]
        positions = None if self.positions is None else self.positions[None]
        self.call = cuda_call(sides, Inputs(positions, inverse=case.inverse), spec, case.layout)
        self._add_table()

    def __str__(self) -> str:
        return f"{self.case} {'in place' if self.in_place else 'apart'}"

    def _nan_like(self, x: Tensor) -> Tensor:
        return strided(torch.full_like(x, float("nan"), memory_format=torch.contiguous_format), self.case.view)

    def _add_table(self) -> None:
        cos, sin = self.table
        strides = [(s if n > 1 else 0, *rest) for n, (s, *rest) in ((t.shape[0], t.stride()) for t in (cos, sin))]
        table = [cos.data_ptr(), sin.data_ptr(), NUMBERS[cos.dtype], *strides[0], *strides[1], self.case.rows]
        self.call.put_table(table)
        self.call.tensors |= {name: t for name, t in (("cos", cos), ("sin", sin)) if t.numel()}

    def expected(self) -> list[Tensor]:
        """The results in float64, of the table in float32."""
        case, cos, sin = self.case, *(t.float().double() for t in self.table)
        rotation = table_rotation(case.head_dim, case.width, case.pairing)
        wide = [tokens_first(x.double(), case.layout) for x in self.before]
        out = [torch.empty_like(x) for x in wide]
        q, k, q_out, k_out = (each for part in (wide, out) for each in [*part, None][:2])
        if self.positions is not None:
            has_row = (self.positions >= 0) & (self.positions < case.rows)
            rows = self.positions.long().clamp(0, case.rows - 1)
            cos = torch.where(has_row[..., None], cos[0][rows], 1.0)
            sin = torch.where(has_row[..., None], sin[0][rows], 0.0)
            join = (
                (lambda t: t.repeat_interleave(2, -1)) if case.pairing == "interleaved" else lambda t: t.repeat(1, 1, 2)
            )
            cos, sin = join(cos), join(sin)
        reference.rotate_table(q, k, q_out, k_out, cos, sin, rotation, case.inverse)
        return out

    def check(self) -> None:
        """Assert that the outputs are right, and that nothing else was written."""
        for y, wanted in zip(self.outputs, self.expected(), strict=True):
            got = tokens_first(y, self.case.layout).double()
            allowed = 2.0 ** -_DIGITS[self.case.dtype] * wanted.abs() + tolerances.TABLE_PRODUCT
            wrong = ~((got - wanted).abs() <= allowed) & ~(got.isnan() & wanted.isnan())
            assert not wrong.any(), f"{self}: {int(wrong.sum())} elements are wrong"
        for y, around in zip(self.outputs, self._around, strict=True):
            assert torch.equal(gaps(y), around), f"{self}: written outside of the output"
        for x, before in self._read_only:
            assert torch.equal(bits(x), bits(before)), f"{self}: an input was written"
