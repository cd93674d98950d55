"""Long calls stream to a KV cache past the CPU's caches: the same bits on both sides of the limit, aligned or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rope_kernels as rk
from rope_kernels.backends import native

ISAS = native.isas()
if not ISAS:
    pytest.skip("there are no native kernels", allow_module_level=True)
LIMIT = 64 << 20
"""Bytes of q, k and v beyond which rows that are whole cache lines are streamed; csrc/ops/launch_cpu.cpp has it."""
V_HEADS, PAGE_SIZE = 16, 16


@pytest.fixture(autouse=True)
def best_isa_afterwards():
    yield
    native.force_isa("")


def nan_cache(pages, heads, width, offset, gap, heads_first, dtype):
    """A NaN-filled cache that starts ``offset`` elements into aligned memory, its rows ``gap`` elements apart."""
    memory = torch.full((pages * PAGE_SIZE * heads * (width + gap) + 64,), torch.nan, dtype=dtype)
    start = (-memory.data_ptr() // memory.element_size()) % (64 // memory.element_size()) + offset
    inner = (heads, PAGE_SIZE) if heads_first else (PAGE_SIZE, heads)
    view = memory[start : start + pages * PAGE_SIZE * heads * (width + gap)].view(pages, *inner, width + gap)
    return memory, (view.transpose(1, 2) if heads_first else view)[..., :width]


def expected(memory, cache, rows, slots):
    """``memory`` after an indexed copy; ``cache``, a view of it, is put back."""
    before = memory.clone()
    stored = slots >= 0
    cache[slots[stored] // PAGE_SIZE, slots[stored] % PAGE_SIZE] = rows[0, : len(slots)][stored]
    after = memory.clone()
    memory.copy_(before)
    return after


@pytest.mark.parametrize("isa", ISAS)
@given(
    is_long=st.booleans(), dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    width=st.sampled_from([1000, 1008, 1024]), offset=st.sampled_from([0, 0, 1, 8, 16, 32]),
    gap=st.sampled_from([0, 0, 8, 32]), heads_first=st.booleans(), shift=st.integers(0, 3),
    returned=st.booleans(), missing=st.integers(0, 3),
)  # fmt: skip
@settings(deadline=None, max_examples=12)
def test_long_calls(isa, is_long, dtype, width, offset, gap, heads_first, shift, returned, missing):
    native.force_isa(isa)
    heads, head_dim, size = 2, 64, dtype.itemsize
    tokens = LIMIT // ((2 * heads * head_dim + V_HEADS * width) * size) + is_long
    generator = torch.Generator().manual_seed(shift)
    q, k = (torch.randn(1, tokens, heads, head_dim, generator=generator).to(dtype) for _ in "qk")
    v = torch.randn(1, tokens, V_HEADS, width + shift, generator=generator).to(dtype)[..., shift:]
    slots = PAGE_SIZE + torch.randperm(tokens, generator=generator)[: tokens - missing]
    slots[::7] = -1
    pages = tokens // PAGE_SIZE + 3
    made = [nan_cache(pages, x.shape[2], x.shape[3], offset, gap, heads_first, dtype) for x in (k, v)]
    config = rk.RopeConfig(head_dim=head_dim)
    wanted = rk.apply_rope(q, k, None, config)
    results = [expected(*pair, x, slots) for pair, x in zip(made, (wanted[1], v), strict=True)]
    cache = rk.KVCache(made[0][1], made[1][1], slots)
    got = rk.apply_rope_append(q, k, v, None, config, cache, return_k=returned)
    assert torch.equal(got[0], wanted[0])
    assert not returned or torch.equal(got[1], wanted[1])
    bits = {2: torch.int16, 4: torch.int32}[size]
    for (memory, _), result in zip(made, results, strict=True):
        assert torch.equal(memory.view(bits), result.view(bits))
