"""Inputs that would rotate wrongly in silence are refused, by whichever door they come, with nothing written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=16)
BACKENDS = ("native", "reference")
BOUNDS = st.lists(st.integers(-2, 9), min_size=2, max_size=6)


def calls(q, positions, **options):
    """The call in each form, with what each could have written."""
    out = (torch.full_like(q, torch.nan), None)
    yield lambda: rk.apply_rope(q, None, positions, CONFIG, **options), q
    yield lambda: rk.apply_rope_(q, None, positions, CONFIG, **options), q
    yield lambda: rk.apply_rope(q, None, positions, CONFIG, out=out, **options), out[0]
    leaf = q.clone().requires_grad_()
    yield lambda: rk.apply_rope(leaf, None, positions, CONFIG, **options), leaf


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@settings(max_examples=60)
@given(bounds=BOUNDS)
def test_bounds_of_packed_sequences(backend, dtype, bounds):
    right = bounds[0] == 0 and bounds[-1] <= 7 and bounds == sorted(bounds)
    q, cu_seqlens = torch.randn(7, 2, 16), torch.tensor(bounds, dtype=dtype)
    with rk.use_backend(backend):
        for call, written in calls(q, None, layout="thd", cu_seqlens=cu_seqlens):
            before = written.detach().clone()
            if right:
                call()
                continue
            with pytest.raises(
                rk.RopeShapeError, match=r"^cu_seqlens: got .*, must rise from 0 to at most q's 7 tokens"
            ):
                call()
            assert torch.equal(written.detach().nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 256), (torch.float16, 2048)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_in_16_bits(backend, dtype, limit):
    assert torch.tensor(limit + 1, dtype=dtype).item() != limit + 1
    assert all(torch.tensor(n, dtype=dtype).item() == n for n in range(limit + 1))
    with rk.use_backend(backend):
        for call, _ in calls(torch.randn(1, 5, 2, 16), torch.arange(5).to(dtype)):
            with pytest.raises(rk.RopeShapeError, match=f"^positions: dtype {dtype}, .*every integer above {limit}"):
                call()
        with pytest.raises(rk.RopeShapeError, match=r"^positions: dtype"):
            rk.cos_sin(torch.arange(5).to(dtype), CONFIG)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)))
def test_heads_taken_for_tokens_are_hinted_at(backend, sizes):
    batch, tokens, q_heads, k_heads = sizes
    q, k = torch.randn(batch, q_heads, tokens, 16), torch.randn(batch, k_heads, tokens, 16)
    with rk.use_backend(backend):
        if q_heads == k_heads == tokens:
            return  # nothing in the shapes tells
        with pytest.raises(
            rk.RopeShapeError, match=r"\(batch, heads, seq, head_dim\) tensors need layout='bhsd'"
        ) as error:
            rk.apply_rope(q, k, torch.arange(tokens), CONFIG)
        assert str(error.value).startswith(("k: ", "positions: "))
        rk.apply_rope(q, k, torch.arange(tokens), CONFIG, layout="bhsd")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.complex64, torch.bool])
def test_tables_of_other_dtypes(backend, dtype):
    cos, sin = (torch.ones(1, 5, 16).to(dtype) for _ in range(2))
    with rk.use_backend(backend), pytest.raises(rk.RopeShapeError, match=r"^cos: dtype .*, allowed are float32"):
        rk.apply_rotary_pos_emb(torch.randn(1, 2, 5, 16), None, cos, sin)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [0, 1, 7, 17, 18, 32])
def test_tables_of_other_widths(backend, width):
    cos, sin = torch.randn(1, 5, width), torch.randn(1, 5, width)
    with rk.use_backend(backend), pytest.raises(rk.RopeShapeError, match=r"^cos: shape .* even rotary_dim of 2 to 16"):
        rk.apply_rotary_pos_emb(torch.randn(1, 2, 5, 16), None, cos, sin)
