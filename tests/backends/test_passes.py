"""Plain torch in few passes rotates as ``rotate_pairs``, with the same bits for any block and memory layout."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rope_kernels.backends import passes, reference
from rope_kernels.core.pairs import pairs, rotate_pairs
from rope_kernels.core.rotation import PAIRINGS, Rotation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def rotations(draw: st.DrawFn) -> Rotation:
    """Channels before and after the rotated ones, gaps between halves, and blocks."""
    pairing = draw(st.sampled_from(PAIRINGS))
    blocks = draw(st.sampled_from((1, 1, 2))) if pairing == "half" else 1
    width = draw(st.integers(1, 9))
    gap = draw(st.sampled_from((0, 0, 3))) if pairing == "half" and blocks == 1 else 0
    start, end = draw(st.sampled_from(((0, 0), (0, 0), (4, 2), (1, 0), (0, 5))))
    head_dim = start + blocks * 2 * (width + gap) + end
    return Rotation(head_dim, blocks * width, width + gap, start, pairing, blocks)


@st.composite
def heads(draw: st.DrawFn, batch: int, tokens: int, count: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """(batch, tokens, heads, head_dim): dense, with heads first in memory, or part of a wider row."""
    seed = draw(st.integers(0, 9))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, count + 2, head_dim, generator=generator).to(dtype)
    if draw(st.booleans()):
        x[:, -1, 0, 0], x[:, 0, 0, -1] = torch.inf, torch.nan
    view = draw(st.sampled_from(("dense", "heads first", "part")))
    part = x[:, :, :count]
    return {"dense": part.clone(), "heads first": part.transpose(1, 2).contiguous().transpose(1, 2), "part": part}[view]


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def assert_same(got: Tensor, wanted: Tensor) -> None:
    is_nan = wanted.isnan()
    assert torch.equal(got.isnan(), is_nan)
    assert torch.equal(bits(got)[~is_nan], bits(wanted)[~is_nan])


def assert_close(got: Tensor, x: Tensor, of_double: Tensor, rounding: float) -> None:
    """``rounding``: of the result's dtype; the products and their sum are each rounded to float32 at most."""
    is_finite = of_double.isfinite()
    assert torch.equal(got.isnan(), of_double.isnan())
    assert torch.equal(got.isfinite(), is_finite)
    size = 3 * x.double().abs().masked_fill(~x.isfinite(), 0).amax(-1, keepdim=True) * 2.0**-24
    error = (got.double() - of_double).abs()[is_finite]
    assert (error <= (size + rounding * of_double.abs())[is_finite]).all()


@given(st.data())
@settings(max_examples=200)
def test_any_block_and_memory_has_the_bits_of_one_block(data: st.DataObject) -> None:
    rotation, dtype = data.draw(rotations()), data.draw(st.sampled_from(DTYPES))
    batch, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    counts = data.draw(st.sampled_from(((3, 1), (2, 0), (1, 2))))
    q, k = (data.draw(heads(batch, tokens, n, rotation.head_dim, dtype)) if n else None for n in counts)
    assert q is not None
    angle = torch.randn(data.draw(st.sampled_from((1, batch))), tokens, rotation.num_pairs)
    cos, sin, inverse = angle.cos(), angle.sin(), data.draw(st.booleans())
    table = passes.table_of(cos, sin, rotation, inverse)
    wanted = [torch.full_like(x, torch.nan, memory_format=torch.contiguous_format) for x in (q, k) if x is not None]
    given_dense = [x.clone(memory_format=torch.contiguous_format) for x in (q, k) if x is not None]
    passes.rotate(*padded(given_dense), *padded(wanted), table, rotation, inverse)
    in_place = data.draw(st.booleans())
    q_out, k_out = (x if x is None or in_place else torch.full_like(x, torch.nan) for x in (q, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK", data.draw(st.sampled_from((1, 40, 200, passes.BLOCK))))
        patch.setattr(passes, "_MANY", data.draw(st.sampled_from((1, passes._MANY))))
        passes.rotate(q, k, q_out, k_out, table, rotation, inverse)
    for got, one in zip((q_out, k_out), wanted, strict=False):
        assert got is not None
        assert_same(got, one)


def padded(tensors: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    return tensors[0], tensors[1] if len(tensors) > 1 else None


@given(st.data())
@settings(max_examples=200)
def test_the_results_are_those_of_rotate_pairs_in_double(data: st.DataObject) -> None:
    rotation, dtype = data.draw(rotations()), data.draw(st.sampled_from(DTYPES))
    batch, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    q = data.draw(heads(batch, tokens, 3, rotation.head_dim, dtype))
    angle = torch.randn(data.draw(st.sampled_from((1, batch))), tokens, rotation.num_pairs)
    cos, sin, inverse = angle.cos(), angle.sin(), data.draw(st.booleans())
    got = torch.full_like(q, torch.nan)
    passes.rotate(q, None, got, None, passes.table_of(cos, sin, rotation, inverse), rotation, inverse)
    signed = -sin if inverse else sin
    wanted = in_double(q, (cos, cos), (signed, signed), rotation, inverse)
    assert_close(got, q, wanted, torch.finfo(dtype).eps / 2)


def in_double(
    x: Tensor, cos: tuple[Tensor, Tensor], sin: tuple[Tensor, Tensor], rotation: Rotation, inverse: bool
) -> Tensor:
    with mock.patch.object(Tensor, "float", Tensor.double):
        c, s = (tuple(t.double().unsqueeze(2) for t in pair) for pair in (cos, sin))
        return rotate_pairs(x.double(), (c[0], c[1]), (s[0], s[1]), rotation, inverse)


@given(st.data())
@settings(max_examples=100)
def test_a_callers_table_rotates_as_in_double(data: st.DataObject) -> None:
    pairing, n = data.draw(st.sampled_from(("half", "interleaved"))), data.draw(st.integers(1, 9))
    rotation = Rotation(2 * n + data.draw(st.sampled_from((0, 0, 6))), n, n, pairing=pairing)
    batch, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    q = data.draw(heads(batch, tokens, 2, rotation.head_dim, data.draw(st.sampled_from(DTYPES))))
    rows = data.draw(st.sampled_from((1, batch))), tokens, 2 * n
    dtype = data.draw(st.sampled_from((*DTYPES, torch.float64)))
    cos, sin = torch.randn(rows).to(dtype), torch.randn(rows).to(dtype)  # the members of a pair differ
    inverse = data.draw(st.booleans())
    got = torch.full_like(q, torch.nan)
    reference.rotate_table(q, None, got, None, cos, sin, rotation, inverse)
    first, second = ([pairs(t, rotation, written=True)[i] for t in (cos.float(), sin.float())] for i in range(2))
    signed = (-second[1], -first[1]) if inverse else (first[1], second[1])
    wanted = in_double(q, (first[0], second[0]), signed, rotation, inverse)
    assert_close(got, q, wanted, torch.finfo(q.dtype).eps / 2)
