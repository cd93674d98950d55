"""Plain torch in few passes over blocks has the bits of ``rotate_pairs``, for any geometry, block and memory layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rope_kernels.backends import passes, reference
from rope_kernels.core.pairs import rotate_pairs
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


@given(st.data())
@settings(max_examples=200)
def test_the_bits_are_those_of_rotate_pairs(data: st.DataObject) -> None:
    rotation, dtype = data.draw(rotations()), data.draw(st.sampled_from(DTYPES))
    batch, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    counts = data.draw(st.sampled_from(((3, 1), (2, 0), (1, 2))))
    q, k = (data.draw(heads(batch, tokens, n, rotation.head_dim, dtype)) if n else None for n in counts)
    assert q is not None
    angle = torch.randn(data.draw(st.sampled_from((1, batch))), tokens, rotation.num_pairs)
    cos, sin, inverse = angle.cos(), angle.sin(), data.draw(st.booleans())
    signed = (-sin if inverse else sin).unsqueeze(2)
    wanted = [
        rotate_pairs(x, (cos.unsqueeze(2),) * 2, (signed, signed), rotation, inverse) for x in (q, k) if x is not None
    ]
    in_place = data.draw(st.booleans())
    q_out, k_out = (x if x is None or in_place else torch.full_like(x, torch.nan) for x in (q, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK", data.draw(st.sampled_from((1, 40, 200, passes.BLOCK))))
        table = passes.table_of(cos, sin, rotation, inverse)
        passes.rotate(q, k, q_out, k_out, table, rotation, inverse)
    for got, one in zip((q_out, k_out), wanted, strict=False):
        assert got is not None
        assert_same(got, one)


@given(st.data())
@settings(max_examples=100)
def test_a_callers_table_has_the_bits_of_rotate_pairs(data: st.DataObject) -> None:
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
    assert_same(got, reference.rotated_by_table(q, cos, sin, rotation, inverse))
