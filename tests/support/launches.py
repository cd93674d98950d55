"""Calls of the Triton kernels' launcher, and what must come of them, whether interpreted or emulated."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import torch
from support import tolerances
from support.attempts import Attempt, bits
from support.calls import arguments, inputs, operation
from support.cases import CASES, CONFIGS, Case, Made, check, make

from rope_kernels.backends import reference
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.pairs import pairs
from rope_kernels.core.rotation import Rotation
from rope_kernels.core.spec import parse_text
from rope_kernels.ops.operators import inputs_of

BY_NAME = {case.name: case for case in CASES}
MANY_TOKENS = [
    c for c in CASES if c.name.startswith(("interleaved", "half-", "head_dim96", "head_dim80", "packed-seq_len-l"))
]
"""Cases for the launch shapes of many tokens."""
COPYING = ["partial-near", "nope_first-near", "proportional-near", "packed-scaled-tail"]
"""Names of cases where not all channels, or not all tokens, are rotated."""
POSITION_DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int32]
TABLE_SHAPES = [(64, 64), (96, 24), (80, 18)]
"""(head_dim, rotary_dim)"""
_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
TABLE_DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]
"""Of q and k, and of the table."""
TABLES = [
    (*dtypes, *shape, pairing, inverse)
    for dtypes, shape, pairing, inverse in product(
        TABLE_DTYPES, TABLE_SHAPES, ("half", "interleaved", "interleaved_to_half"), (False, True)
    )
]
"""Arguments of :func:`run_table`."""
SOME_TABLES = TABLES[::5]
"""Every dtype, shape, pairing and direction at least once."""


def launch(case: Case, made: Made, outputs, rotate=triton_launch.rotate, given=None, **changes) -> None:
    """Call ``rotate`` on a case's tensors. ``given``: its arguments, if there are; ``changes``: of its ``Inputs``."""
    args = given or arguments(case, made)
    parsed = parse_text(args.text)
    backend_inputs = dataclasses.replace(inputs_of(args, parsed), **changes)
    views = [None if x is None else tokens_first(x, parsed.layout) for x in (made.q, made.k, *outputs)]
    rotate(*views, backend_inputs, parsed.spec)


def run(case: Case, in_place: bool) -> None:
    """Rotate a case into NaN or in place; nothing but the results may change."""
    rotate(Attempt(case, in_place))


def rotate(attempt: Attempt) -> None:
    """Make and check an attempt."""
    launch(attempt.case, attempt.made, [*attempt.outputs, None][:2], given=attempt.arguments)
    attempt.check()


def tiles(tokens: int) -> Case:
    """So many tokens, for tiles of many that are full or not."""
    return Case("tiles", CONFIGS["default"], batch=1, tokens=tokens, start=5, dtype=torch.bfloat16)


def run_positions_of(dtype: torch.dtype) -> None:
    case = BY_NAME["positions-float" if dtype.is_floating_point else "positions-seq"]
    made = make(case)
    made.positions = made.positions.to(dtype)
    out, same = (torch.empty_like(made.q), torch.empty_like(made.k)), (torch.empty_like(made.q), None)
    launch(case, made, out)
    reference_positions = made.positions.double() if dtype.is_floating_point else made.positions.long()
    args = arguments(case, made)._replace(positions=reference_positions)
    reference.rotate(made.q, None, *same, inputs(args), parse_text(args.text).spec)
    torch.testing.assert_close(out[0], same[0], **tolerances.FRACTIONAL)


def run_rounded(dtype: str) -> None:
    """Cosines and sines rounded to ``dtype``."""
    case = Case("rounded", dict(head_dim=64, table_dtype=dtype, phase="float32"), start=40)
    made = make(case)
    got, wanted = (tuple(map(torch.empty_like, (made.q, made.k))) for _ in range(2))
    launch(case, made, got)
    launch(case, made, wanted, reference.rotate)
    error = (got[0] - wanted[0]).abs()
    assert error.median() < 1e-7  # where the two sines straddle a rounding boundary they may differ by one step
    assert error.max() < tolerances.ROUNDED_TABLE["atol"]


def run_one_of_two_in_place() -> None:
    case = BY_NAME["interleaved_to_half-bfloat16-forward"]
    made = make(case)
    q, k_out = made.q.clone(), torch.full_like(made.k, float("nan"))
    launch(case, made, (made.q, k_out))
    check(case, q, made.q, made.expected[0])
    check(case, made.k, k_out, made.expected[1])


def run_copying(name: str) -> None:
    """What is not rotated is copied bit by bit, NaN and infinities included."""
    case = BY_NAME[name]
    made = make(case)
    rotation = operation(case, made).spec.rotation
    keep = torch.ones(rotation.head_dim, dtype=torch.bool)
    for member in pairs(keep, rotation, written=True):
        member.fill_(False)
    tokens = slice(None) if not case.lengths else slice(sum(case.lengths), None)
    keep = keep if not case.lengths else slice(None)
    made.q[..., tokens, :, keep] = float("inf")
    made.k[..., tokens, :, keep] = float("nan")
    for in_place in (False, True):
        out = (made.q, made.k) if in_place else (torch.empty_like(made.q), torch.empty_like(made.k))
        launch(case, made, out)
        for x, y in zip((made.q, made.k), out, strict=True):
            assert torch.equal(bits(x[..., tokens, :, keep]), bits(y[..., tokens, :, keep]))


def run_far_apart(folder: Path) -> None:
    """Two tokens that lie 2**31 elements apart in a sparse file."""
    stride = 2**31
    whole = torch.from_file(str(folder / "sparse"), shared=True, size=stride + 64, dtype=torch.bfloat16)
    case = Case("far apart", CONFIGS["default"], batch=1, tokens=2, q_heads=1, k_heads=0, dtype=torch.bfloat16)
    made = make(case)
    before = made.q
    made.q = whole.as_strided(made.q.shape, (stride, stride, 64, 1))
    made.q.copy_(before)
    launch(case, made, (made.q, None))
    check(case, before, made.q, made.expected[0])


def run_table(
    dtype: torch.dtype, table_dtype: torch.dtype, head_dim: int, rotary_dim: int, pairing: str, inverse: bool
) -> None:
    """Rotation by a caller's table, out of place and in place."""
    generator = torch.Generator().manual_seed(head_dim)
    q = torch.randn(2, 4, 3, head_dim, generator=generator).to(dtype).transpose(1, 2)
    k = torch.randn(2, 3, 2, head_dim, generator=generator).to(dtype)
    cos, sin = (torch.randn(1 + inverse, 3, rotary_dim, generator=generator).to(table_dtype) for _ in range(2))
    rotation = Rotation(head_dim, rotary_dim // 2, rotary_dim // 2, pairing=pairing)
    exact = [torch.empty(x.shape, dtype=torch.float64) for x in (q, k)]
    reference.rotate_table(q.double(), k.double(), *exact, cos.double(), sin.double(), rotation, inverse)
    digits = _DIGITS[dtype]
    for in_place in (False, True):
        out = [x.clone() if in_place else torch.full_like(x, float("nan")) for x in (q, k)]
        triton_launch.rotate_table(*(out if in_place else (q, k)), *out, cos, sin, rotation, inverse)
        for y, wanted in zip(out, exact, strict=True):
            assert ((y.double() - wanted).abs() <= 2.0**-digits * wanted.abs() + tolerances.TABLE_PRODUCT).all()


CACHED = [(*dtypes, *shape, pairing) for dtypes, shape, pairing in product(
    (*TABLE_DTYPES, (torch.float16, torch.float32)), TABLE_SHAPES, ("half", "interleaved")
)]  # fmt: skip
"""Arguments of :func:`run_cached`."""


def run_cached(dtype: torch.dtype, table_dtype: torch.dtype, head_dim: int, rotary_dim: int, pairing: str) -> None:
    """Rotation by the rows of a table, out of place and in place; some positions have no row."""
    generator = torch.Generator().manual_seed(head_dim)
    q = torch.randn(2, 4, 3, head_dim, generator=generator).to(dtype).transpose(1, 2)
    k = torch.randn(2, 3, 2, head_dim, generator=generator).to(dtype)
    cos, sin = torch.randn(7, rotary_dim, generator=generator).to(table_dtype).chunk(2, -1)
    for positions in (torch.tensor([[0, 6, 3], [7, 2, -1]], dtype=torch.int32), torch.tensor([[5, 9, 0]])):
        has_row = (positions >= 0) & (positions < 7)
        rotation = Rotation(head_dim, rotary_dim // 2, rotary_dim // 2, pairing=pairing)
        row = positions.long().clamp(0, 6)
        c, s = (torch.where(has_row[..., None], t.double()[row], float(t is cos))[:, :, None] for t in (cos, sin))
        for in_place in (False, True):
            out = [x.clone() if in_place else torch.full_like(x, float("nan")) for x in (q, k)]
            triton_launch.rotate_cached(*(out if in_place else (q, k)), *out, positions, cos, sin, rotation)
            for x, y in zip((q, k), out, strict=True):
                wanted = _in_double(x, c, s, rotation)
                limit = 2.0 ** -_DIGITS[dtype] * wanted.abs() + tolerances.TABLE_PRODUCT
                assert ((y.double() - wanted).abs() <= limit).all()
                assert torch.equal(y[~has_row.expand(2, 3)], x[~has_row.expand(2, 3)])


def _in_double(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    wanted = x.double()
    first, second = (t.clone() for t in pairs(wanted, rotation, written=True))
    y_first, y_second = pairs(wanted, rotation, written=True)
    y_first.copy_(first * cos - second * sin)
    y_second.copy_(second * cos + first * sin)
    return wanted


def rotated(case: Case, made: Made) -> torch.Tensor:
    """q of a case, in a new tensor: for Phases.check."""
    out = torch.full_like(made.q, float("nan"))
    launch(case, made, (out, None))
    return out


def run_rotated(rotate=triton_launch.rotate) -> None:
    """Pairs whose frequency is beyond ``rotated`` are not rotated, at any position."""
    case = BY_NAME["default-near"]
    made = make(case)
    args = arguments(case, made)
    args = args._replace(positions=made.positions + 1000, text=f"{args.text};rotated=5")
    out = torch.full_like(made.q, float("nan")), torch.full_like(made.k, float("nan"))
    rotate(made.q, made.k, *out, inputs(args), parse_text(args.text).spec)
    for x, y in zip((made.q, made.k), out, strict=True):
        for half in (0, 32):
            assert torch.equal(x[..., half + 5 : half + 32], y[..., half + 5 : half + 32])
            assert not torch.equal(x[..., half : half + 5], y[..., half : half + 5])
