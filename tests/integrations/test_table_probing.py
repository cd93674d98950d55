"""Functions that rotate by a table of any form are known by what they compute, and replaced with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from torch import Tensor

from rope_kernels.integrations.tables import rotating
from rope_kernels.integrations.tables.conventions import Convention
from rope_kernels.integrations.tables.probing import Measured, probe_function
from rope_kernels.integrations.tables.rotating import replacement

CLOSE = tolerances.TWO_WAYS
SIZES = {0: 2, 1: 7, 2: 4}  # of batch, of the next two axes of x
LEADS = [(1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
KINDS = ["two", "pair", "sin, cos", "complex", "matrix", "angles", "cos|sin", "sin|cos"]


def turned(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """A rotation in plain torch, of the leading channels."""
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if pairing == "half":
        a, b = x.float().chunk(2, -1)
        other = torch.cat((-b, a), -1)
    else:
        other = torch.stack((-x[..., 1::2].float(), x[..., ::2].float()), -1).flatten(-2)
    return torch.cat(((x.float() * cos + other * sin).to(x.dtype), rest), -1)


def aligned(table: Tensor, axes: tuple[int, ...], after: int = 1) -> Tensor:
    """A table with its dimensions at these axes of x."""
    for axis in range(3):
        if axis not in axes:
            table = table.unsqueeze(axis - 3 - after if table.dim() >= 3 + after else axis)
    return table


def theirs(kind: str, pairing: str, axes: tuple[int, ...]) -> Any:
    """A function of another library, in plain torch."""

    def by(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return turned(x, aligned(cos, axes), aligned(sin, axes), pairing)

    def two(x, freqs_cos, freqs_sin):
        return by(x, freqs_cos, freqs_sin)

    def pair(x, freqs):
        return by(x, *freqs)

    def sin_cos(x, sin_emb, cos_emb):
        return by(x, cos_emb, sin_emb)

    def complex_(x, freqs_cis):
        rotated = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous()) * aligned(freqs_cis, axes)
        return torch.view_as_real(rotated).flatten(-2).to(x.dtype)

    def matrix(x, rope):
        rows = aligned(rope, axes, 3) * x.float().unflatten(-1, (-1, 1, 2))
        return rows.sum(-1).flatten(-2).to(x.dtype)

    def angles(x, freqs):
        return by(x, freqs.cos(), freqs.sin())

    def joined(x, emb):
        first, second = emb.chunk(2, -1)
        return by(x, first, second) if kind == "cos|sin" else by(x, second, first)

    known = {"two": two, "pair": pair, "sin, cos": sin_cos, "complex": complex_, "matrix": matrix, "angles": angles}
    return known.get(kind, joined)


def table_of(kind: str, lead: list[int], width: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments for the table of such a function."""
    cos, sin = torch.randn(2, *lead, width, dtype=dtype)
    if kind in ("two", "sin, cos"):
        return cos, sin
    if kind == "complex":
        return (torch.complex(cos, sin)[..., : width // 2],)
    if kind == "matrix":
        return (torch.randn(*lead, width // 2, 2, 2, dtype=dtype),)
    return ({"pair": (cos, sin), "angles": cos}.get(kind, torch.cat((cos, sin), -1)),)


def replaced(function: Any) -> tuple[Any, Measured]:
    """The replacement of a function, which fails where it would call the function itself."""
    measured = probe_function(function)
    assert isinstance(measured, Measured), measured

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the kernel did not do this call")

    return replacement(refused, measured.signature, measured.conventions), measured


forms = st.tuples(st.sampled_from(KINDS), st.sampled_from(["half", "interleaved"]), st.sampled_from(LEADS)).filter(
    lambda form: form[0] not in ("complex", "matrix") or form[1] == "interleaved"
)
FUNCTIONS: dict[Any, Any] = {}


@settings(max_examples=60, deadline=None)
@given(
    form=forms,
    width=st.sampled_from([8, 16, 4]),
    ones=st.sets(st.integers(0, 2), max_size=1),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    table_dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_replaced_function_computes_the_same(
    form: Any, width: int, ones: set[int], transposed: bool, dtype: torch.dtype, table_dtype: torch.dtype
) -> None:
    kind, pairing, axes = form
    function = FUNCTIONS.setdefault(form, theirs(kind, pairing, axes))
    mine, measured = replaced(function)
    width = 16 if kind in ("complex", "matrix") else width
    lead = [1 if axis in ones and len(axes) > 1 else SIZES[axis] for axis in axes]
    if all(size == 1 for axis, size in zip(axes, lead, strict=True) if axis):
        return  # the same table for all tokens: not rotated by the kernel
    table = table_of(kind, lead, width, table_dtype)
    x = torch.randn(2, 4, 7, 16).transpose(1, 2) if transposed else torch.randn(2, 7, 4, 16)
    x = x.to(dtype)
    want, got = function(x, *table), mine(x, *table)
    assert got.dtype == dtype
    assert got.shape == x.shape
    if dtype == torch.float32:
        torch.testing.assert_close(got, want, **CLOSE)
    else:
        spacing = torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=spacing, atol=spacing / 16)
    assert {c.axes for c in measured.conventions.values() if c.key[1] == 4 and len(c.axes) == len(axes)} == {axes}


@settings(max_examples=20, deadline=None)
@given(form=forms)
def test_gradients_reach_x_and_the_table(form: Any) -> None:
    kind, pairing, axes = form
    function = FUNCTIONS.setdefault(form, theirs(kind, pairing, axes))
    mine, _ = replaced(function)
    x = torch.randn(2, 7, 4, 16)
    leaves = [torch.randn(2, 7, 4, 16).requires_grad_()]
    tables = table_of(kind, [SIZES[axis] for axis in axes], 16, torch.float32)
    held = tables[0] if kind == "pair" else tables
    leaves += [t.clone().requires_grad_() for t in held]
    args = (tuple(leaves[1:]),) if kind == "pair" else tuple(leaves[1:])
    want = torch.autograd.grad((function(leaves[0], *args) * x).sum(), leaves)
    got = torch.autograd.grad((mine(leaves[0], *args) * x).sum(), leaves)
    for mine_of, theirs_of in zip(got, want, strict=True):
        torch.testing.assert_close(mine_of, theirs_of, **tolerances.GRADIENT)


def test_two_tensors_are_rotated_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(xq, xk, freqs_cis):
        return tuple(turned(x, freqs_cis[0][:, None], freqs_cis[1][:, None], "half") for x in (xq, xk))

    mine, _ = replaced(apply)
    calls: list[Any] = []
    call = rotating.apply_rotary_pos_emb
    monkeypatch.setattr(rotating, "apply_rotary_pos_emb", lambda *a, **k: calls.append(a) or call(*a, **k))
    q, k, table = torch.randn(2, 7, 4, 16), torch.randn(2, 7, 1, 16), tuple(torch.randn(2, 7, 16))
    for got, want in zip(mine(q, k, table), apply(q, k, table), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    assert len(calls) == 1
    assert isinstance(mine(q, k, table), tuple)


def with_options(x, freqs, use_real=True, dim=2):
    cos, sin = freqs
    if dim not in (1, 2):
        raise ValueError(dim)
    cos, sin = (t[:, None] if dim == 1 else t for t in (cos, sin))
    return turned(x, cos, sin, "interleaved" if use_real else "half")


@pytest.mark.parametrize("use_real", [True, False])
@pytest.mark.parametrize("dim", [1, 2])
def test_options_are_part_of_the_call(use_real: bool, dim: int) -> None:
    mine, measured = replaced(with_options)
    x, table = torch.randn(2, 7, 5, 16), tuple(torch.randn(2, 7 if dim == 1 else 5, 16))
    want = with_options(x, table, use_real, dim)
    torch.testing.assert_close(mine(x, table, use_real, dim), want, **CLOSE)
    torch.testing.assert_close(mine(x=x, dim=dim, freqs=table, use_real=use_real), want, **CLOSE)
    assert {"interleaved", "half"} < set(measured.names)


CALLS = [
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 4, 16)), True, 3),
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 4, 16)), True, 2, 5),
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 4, 16)), flag=True),
    lambda f: f(torch.randn(2, 7, 4, 16).double(), tuple(torch.randn(2, 4, 16))),
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 4, 32))),
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 7, 16))),
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 1, 16))),
    lambda f: f(torch.randn(2, 7, 4, 16), tuple(torch.randn(3, 4, 16))),
    lambda f: f(torch.randn(2, 7, 4, 16), [1.0, 2.0]),
    lambda f: f(None, tuple(torch.randn(2, 4, 16))),
]


@pytest.mark.parametrize("call", CALLS)
def test_other_calls_go_to_the_function_itself(call: Any) -> None:
    measured = probe_function(with_options)
    assert isinstance(measured, Measured)
    seen: list[Any] = []
    call(replacement(lambda *a, **k: seen.append((a, k)), measured.signature, measured.conventions))
    assert len(seen) == 1


def scaled(x, freqs):
    return 2 * turned(x, *freqs, "half")


def backwards(x, freqs):
    return turned(x, freqs[0], -freqs[1], "half")


def sometimes(x, freqs):
    return turned(x, *freqs, "half") if freqs[0].shape[-1] == x.shape[-1] else x


def by_parts(x, freqs, parts=2):
    """Only with an option that is not the default a rotation of the whole head."""
    tables = zip(*(t.chunk(parts, -1) for t in freqs), strict=True)
    return torch.cat([turned(x, *t, "half") for x, t in zip(x.chunk(parts, -1), tables, strict=True)], -1)


def in_fp32(x, freqs):
    return turned(x, *freqs, "half").float()


def of_three(q, k, v, freqs):
    return q, k, v


def without_a_table(x, y):
    return x


def strange(x, freqs):
    raise RuntimeError


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (scaled, "match no known convention"),
        (backwards, "match no known convention"),
        (sometimes, "match no known convention"),
        (by_parts, "match no known convention"),
        (in_fp32, "another dtype than x"),
        (of_three, "it takes (q, k, v, freqs), not one or two tensors and a table"),
        (without_a_table, "it takes (x, y), not one or two"),
        (strange, "no table of a known form"),
    ],
)
def test_what_is_more_than_a_rotation_has_a_reason(function: Any, reason: str) -> None:
    said = probe_function(function)
    assert isinstance(said, str)
    assert reason in said


def test_a_result_that_is_always_in_bf16_stays_so() -> None:
    def apply(x, freqs):
        return turned(x, *freqs, "interleaved").to(torch.bfloat16)

    mine, _ = replaced(apply)
    x, table = torch.randn(2, 7, 4, 16), tuple(torch.randn(2, 4, 16))
    got = mine(x, table)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, apply(x, table), rtol=2**-7, atol=2**-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
def test_a_result_of_the_wider_dtype_stays_so(dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    def apply(x, freqs):
        cos, sin = (t[:, None] for t in freqs)
        return x * cos + torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1) * sin

    mine, _ = replaced(apply)
    x, table = torch.randn(2, 7, 4, 16).to(dtype), tuple(torch.randn(2, 7, 16).to(table_dtype))
    got, want = mine(x, table), apply(x, table)
    assert got.dtype == want.dtype
    close = CLOSE if want.dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    torch.testing.assert_close(got, want, **close)


def test_probing_leaves_the_random_numbers_alone() -> None:
    def fresh(x, freqs):
        return turned(x, *freqs, "half")

    torch.manual_seed(3)
    want = torch.randn(4)
    torch.manual_seed(3)
    assert isinstance(probe_function(fresh), Measured)
    assert torch.equal(torch.randn(4), want)


def test_conventions_are_named_for_reports() -> None:
    names = {
        Convention(((), 4, "pair", 2), "cos_sin", (1,), "half", "full").name,
        Convention(((), 4, "pair", 4), "cos_sin", (0, 1, 2), "half", "pairs").name,
        Convention(((), 4, "real", 5), "matrix", (0, 1), "interleaved", "full").name,
        Convention(((), 4, "complex", 4), "complex", (0, 1, 2), "interleaved", "pairs", 2).name,
    }
    assert names == {
        "half",
        "half, half-width, per head",
        "interleaved, 2x2",
        "interleaved, complex, per head, channels before tokens",
    }
