"""What the case list has not: rounded tables, dtypes of positions, a caller's table, copies, addresses past 2**31.

Made on the CPU, rotated on the device, and held to the plain torch backend on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from support.attempts import bits
from support.calls import arguments, inputs, operation
from support.cases import Case, Made, check, config_of, make
from support.launches import BY_NAME, COPYING, POSITION_DTYPES, TABLE_DTYPES, TABLE_SHAPES
from torch import Tensor

import rope_kernels as rk
from rope_kernels.backends import reference
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.pairs import pairs
from rope_kernels.ops import operators

from .outcomes import Check, NotHereError, Setup
from .placing import Placed, moved

__all__ = ["check_far_apart", "other_checks"]

NEAR = 3e-6
"""Both sides compute in fp32 or better: 5e-7 of numbers up to 5, and the reference's own rounding."""
PAIRINGS = ("half", "interleaved", "interleaved_to_half")


def _q_and_k(made: Made) -> tuple[Tensor, Tensor]:
    assert made.k is not None
    return made.q, made.k


def _by_reference(case: Case, made: Made) -> list[Tensor]:
    args, parsed = arguments(case, made), operation(case, made)
    given = _q_and_k(made)
    wanted = [torch.empty_like(x) for x in given]
    q, k, q_out, k_out = (tokens_first(x, parsed.layout) for x in (*given, *wanted))
    reference.rotate(q, k, q_out, k_out, inputs(args), parsed.spec)
    return wanted


def check_positions(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """Positions in each dtype that is allowed."""
    case = BY_NAME["positions-float" if dtype.is_floating_point else "positions-seq"]
    made = make(case)
    assert made.positions is not None
    made.positions = made.positions.to(dtype)
    attempt = Placed(case, device, False, made)
    results = attempt.rotate(backend)
    attempt.check_the_rest(results)
    torch.testing.assert_close(results, _by_reference(case, made), rtol=0, atol=NEAR)


def check_rounded(dtype: str, backend: str, device: torch.device) -> None:
    """Cosines and sines rounded to ``dtype``: where two straddle a rounding boundary, they are one step apart."""
    case = Case("rounded", dict(head_dim=64, table_dtype=dtype, phase="float32"), start=40)
    made = make(case)
    results = Placed(case, device, False, made).rotate(backend)
    for got, wanted in zip(results, _by_reference(case, made), strict=True):
        error = (got - wanted).abs()
        assert error.median() < 1e-7
        assert error.max() < 0.02


def check_copies(name: str, in_place: bool, backend: str, device: torch.device) -> None:
    """What is not rotated is copied bit by bit, NaN and infinities included."""
    case = BY_NAME[name]
    made = make(case)
    rotation = config_of(case).rotation()
    keep = torch.ones(rotation.head_dim, dtype=torch.bool)
    for member in pairs(keep, rotation, written=True):
        member.fill_(False)
    past_the_end = slice(sum(case.lengths), None) if case.lengths else slice(None)
    places = (..., past_the_end, slice(None), slice(None) if case.lengths else keep)
    for x, value in zip(_q_and_k(made), (float("inf"), float("nan")), strict=True):
        x[places] = value
    before = [bits(x[places]).clone() for x in _q_and_k(made)]
    results = Placed(case, device, in_place, made).rotate(backend)
    assert all(torch.equal(bits(y[places]), x) for x, y in zip(before, results, strict=True))


def check_table(
    dtypes: tuple[torch.dtype, torch.dtype], shape: tuple[int, int], pairing: str, inverse: bool, backend: str,
    device: torch.device,
) -> None:  # fmt: skip
    """Rotation by a caller's table, whose halves differ."""
    (dtype, table_dtype), (head_dim, rotary_dim) = dtypes, shape
    generator = torch.Generator().manual_seed(head_dim)
    q = torch.randn(2, 3, 4, head_dim, generator=generator).to(dtype)
    k = torch.randn(2, 3, 2, head_dim, generator=generator).to(dtype)
    cos, sin = (torch.randn(1 + inverse, 3, rotary_dim, generator=generator).to(table_dtype) for _ in range(2))
    exact = tuple(torch.empty(x.shape, dtype=torch.float64) for x in (q, k))
    rotation = operators.table_rotation(head_dim, rotary_dim, pairing)
    reference.rotate_table(q.double(), k.double(), exact[0], exact[1], cos.double(), sin.double(), rotation, inverse)
    with rk.use_backend(backend):
        there = (moved(x, device) for x in (q, k, cos, sin))
        results = operators.rotate_table(*there, rotary_dim, pairing, "bshd", inverse)
    digits = {torch.float32: 24, torch.bfloat16: 8}[dtype]
    for got, wanted in zip(results, exact, strict=True):
        assert ((got.cpu().double() - wanted).abs() <= 2.0**-digits * wanted.abs() + 1e-6).all()


def check_far_apart(backend: str, device: torch.device, stride: int = 2**31) -> None:
    """Two tokens ``stride`` elements apart."""
    needed = 2 * (stride + 64)
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.1 * needed:
        raise NotHereError(f"{needed / 2**30:.1f} GiB of memory are not free")
    case = Case("far apart", dict(head_dim=64), batch=1, tokens=2, q_heads=1, k_heads=0, dtype=torch.bfloat16)
    made = make(case)
    assert made.positions is not None
    whole = torch.empty(stride + 64, dtype=torch.bfloat16, device=device)
    q = whole.as_strided(made.q.shape, (stride, stride, 64, 1))
    q.copy_(made.q)
    positions = moved(made.positions, device)
    with rk.use_backend(backend):
        rk.apply_rope_(q, None, positions, config_of(case))
    check(case, made.q, q.cpu(), made.expected[0])


def other_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """All of these, for one backend."""

    def made(name: str, function: Callable[..., None], *values: object) -> Check:
        return Check(f"others/{backend}/{name}", lambda: function(*values, backend, setup.device))

    for dtype in POSITION_DTYPES:
        yield made(f"positions/{dtype}", check_positions, dtype)
    for rounding in ("bfloat16", "float16"):
        yield made(f"rounded/{rounding}", check_rounded, rounding)
    for name, in_place in product(COPYING, (False, True)):
        yield made(f"copied/{name}/{'in place' if in_place else 'apart'}", check_copies, name, in_place)
    for table in product(TABLE_DTYPES, TABLE_SHAPES, PAIRINGS, (False, True)):
        yield made(f"table/{'/'.join(map(str, table))}", check_table, *table)
    yield made("far apart", check_far_apart)
