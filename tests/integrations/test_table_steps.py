"""A table is converted once for all layers of a step, and again where an old conversion would be wrong."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rope_kernels.integrations.tables import rotating, steps
from rope_kernels.integrations.tables.probing import Measured, probe_function
from rope_kernels.integrations.tables.rotating import replacement

CLOSE = tolerances.TWO_WAYS


def by_complex(x, freqs_cis):
    rotated = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous()) * freqs_cis[:, None]
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


def by_pair(x, freqs):
    cos, sin = (t[:, None] for t in freqs)
    other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return (x.float() * cos + other.float() * sin).to(x.dtype)


def by_halves(x, freqs):
    cos, sin = (t[:, None] for t in freqs)
    return (x * cos + torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1) * sin).to(x.dtype)


def mine(function: Any) -> Any:
    measured = probe_function(function)
    assert isinstance(measured, Measured)
    return replacement(function, measured.signature, measured.conventions)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The conversions."""
    for function in (by_complex, by_pair, by_halves):
        probe_function(function)
    found: list[Any] = []
    prepare = steps._prepare
    monkeypatch.setattr(steps, "_prepare", lambda *a: found.append(a) or prepare(*a))
    return found


X = torch.randn(2, 7, 4, 16, generator=torch.Generator().manual_seed(0))


def complex_table() -> Tensor:
    return torch.randn(7, 8, dtype=torch.complex64)


def test_layers_share_a_conversion(made: list[Any]) -> None:
    rotate, table = mine(by_complex), complex_table()
    for _ in range(5):
        torch.testing.assert_close(rotate(X, table), by_complex(X, table), **CLOSE)
    assert len(made) == 1
    rotate(X, table.clone())
    assert len(made) == 2


@pytest.mark.parametrize("side", [0, 1])
def test_a_changed_table_is_converted_again(side: int, made: list[Any]) -> None:
    rotate, table = mine(by_pair), tuple(torch.randn(2, 7, 16))
    rotate(X, table)
    table[side].mul_(0.5)
    torch.testing.assert_close(rotate(X, table), by_pair(X, table), **CLOSE)
    assert len(made) == 2
    other = (table[0], torch.randn(7, 16))
    torch.testing.assert_close(rotate(X, other), by_pair(X, other), **CLOSE)


@pytest.mark.parametrize("kind", ["complex", "pair"])
def test_a_conversion_dies_with_its_table(kind: str) -> None:
    rotate, table = (
        (mine(by_complex), complex_table()) if kind == "complex" else (mine(by_pair), tuple(torch.randn(2, 7, 16)))
    )
    before = len(steps._kept)
    rotate(X, table)
    assert len(steps._kept) == before + 1
    first = weakref.ref(table if isinstance(table, Tensor) else table[0])
    del table
    gc.collect()
    assert first() is None
    assert len(steps._kept) == before


def test_a_table_is_saved_and_copied_as_it_was() -> None:
    rotate, table = mine(by_complex), complex_table()
    rotate(X, table)
    assert copy.deepcopy(table).__dict__ == {}


def learned(rotate: Any) -> None:
    table = torch.randn(7, 8, dtype=torch.complex64).requires_grad_()
    for _ in range(2):
        rotate(X, table).sum().backward()
    assert table.grad is not None


def in_inference_mode(rotate: Any) -> None:
    with torch.inference_mode():
        table = complex_table()
        rotate(X, table)
        table.mul_(2)
        torch.testing.assert_close(rotate(X, table), by_complex(X, table), **CLOSE)


def by_vmap(rotate: Any) -> None:
    table = torch.randn(3, 7, 8, dtype=torch.complex64)
    got = torch.vmap(lambda t: rotate(X, t))(table)
    torch.testing.assert_close(got, torch.stack([by_complex(X, t) for t in table]), **CLOSE)


@pytest.mark.parametrize("call", [learned, in_inference_mode, by_vmap])
def test_what_must_not_be_kept_is_not(call: Callable[[Any], None], made: list[Any]) -> None:
    before = len(steps._kept)
    call(mine(by_complex))
    assert len(made) >= 1
    assert len(steps._kept) == before


def test_a_fake_call_leaves_nothing_behind(made: list[Any]) -> None:
    rotate, table = mine(by_complex), complex_table()
    with FakeTensorMode(allow_non_fake_inputs=True):
        rotate(torch.empty(2, 7, 4, 16), table)
    torch.testing.assert_close(rotate(X, table), by_complex(X, table), **CLOSE)


def test_conversions_of_inference_serve_training(made: list[Any]) -> None:
    rotate, table = mine(by_complex), complex_table()
    with torch.inference_mode():
        rotate(X, table)
    x = X.clone().requires_grad_()
    rotate(x, table).square().sum().backward()
    assert x.grad is not None
    assert len(made) == 1


@settings(max_examples=20, deadline=None)
@given(
    function=st.sampled_from([by_pair, by_halves]),
    equal=st.booleans(),
    wide=st.sampled_from([1022, 1024, 2048]),
    heads=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    table_dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_wide_heads_read_a_table_of_half_the_width(
    function: Any, equal: bool, wide: int, heads: int, dtype: torch.dtype, table_dtype: torch.dtype
) -> None:
    rotate = mine(function)
    cos, sin = torch.randn(2, 7, wide // 2, dtype=table_dtype)
    if function is by_pair:
        table = [t.repeat_interleave(2, -1) for t in (cos, sin)]
    else:
        table = [torch.cat((t, t), -1) for t in (cos, sin)]
    if not equal:
        table[1][3, 5] += 1
    x = torch.randn(2, 7, heads, wide).to(dtype)
    taken: list[Any] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        call = rotating.apply_rope_cached_
        monkeypatch.setattr(rotating, "apply_rope_cached_", lambda *a, **k: taken.append(a) or call(*a, **k))
        got = rotate(x, tuple(table))
        assert bool(taken) == (equal and wide >= steps.WIDE)
        taken.clear()
        leaf = x.float().requires_grad_()
        rotate(leaf, tuple(table)).sum().backward()
        assert not taken
    want = function(x.float(), table).to(dtype)
    close = CLOSE if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-8}
    torch.testing.assert_close(got, want, **close)
