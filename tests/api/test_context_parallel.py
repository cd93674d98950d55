"""context_parallel_positions against the index selections of Megatron-LM and TransformerEngine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=16)


def on_this_rank(x: Tensor, cp_size: int, cp_rank: int) -> Tensor:
    """Megatron-LM's ``get_batch_on_this_cp_rank``, along the first axis."""
    chunks = x.view(2 * cp_size, x.shape[0] // (2 * cp_size), *x.shape[1:])
    index = torch.tensor([cp_rank, 2 * cp_size - cp_rank - 1])
    return chunks.index_select(0, index).reshape(-1, *x.shape[1:])


def partitioned(lengths: list[int], cp_size: int, cp_rank: int) -> Tensor:
    """TransformerEngine's ``thd_get_partitioned_indices``: the packed tokens that a rank has."""
    found, start = [], 0
    for length in lengths:
        found.append(start + on_this_rank(torch.arange(length), cp_size, cp_rank))
        start += length
    return torch.cat(found)


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_one_sequence(cp_size: int, chunk: int, offset: int) -> None:
    num_tokens = 2 * cp_size * chunk
    for rank in range(cp_size):
        got = rk.context_parallel_positions(num_tokens, cp_size=cp_size, cp_rank=rank, offset=offset)
        assert torch.equal(got, on_this_rank(torch.arange(num_tokens), cp_size, rank) + offset)


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=5), st.data())
def test_packed_sequences_rotate_as_on_one_rank(cp_size: int, chunks: list[int], data: st.DataObject) -> None:
    lengths = [2 * cp_size * n for n in chunks]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(data.draw(st.sampled_from((torch.int32, torch.int64))))
    offset = torch.tensor([data.draw(st.integers(0, 50)) for _ in lengths])
    total = sum(lengths)
    q = torch.randn(total, 2, 16)
    whole, _ = rk.apply_rope(q, None, None, CONFIG, layout="thd", cu_seqlens=bounds, offset=offset)
    for rank in range(cp_size):
        mine = partitioned(lengths, cp_size, rank)
        positions = rk.context_parallel_positions(
            total, cp_size=cp_size, cp_rank=rank, cu_seqlens=bounds, offset=offset
        )  # fmt: skip
        got, _ = rk.apply_rope(q[mine], None, positions, CONFIG, layout="thd")
        assert torch.equal(got, whole[mine])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_tokens=10), "num_tokens: got 10, must be a multiple of 2 \\* cp_size = 4"),
        (dict(num_tokens=8.0), "num_tokens: got 8.0"),
        (dict(cp_size=0), "cp_size: got 0"),
        (dict(cp_rank=2), "cp_rank: got 2, ranks are 0 to 1"),
        (dict(cp_rank=-1), "cp_rank: got -1"),
        (dict(cu_seqlens=torch.tensor([0, 6, 8])), r"cu_seqlens: got \[0, 6, 8\], must rise"),
        (dict(cu_seqlens=torch.tensor([0, 16])), "cu_seqlens: got"),
        (dict(cu_seqlens=torch.tensor([0.0, 8.0])), "cu_seqlens: dtype"),
        (dict(cu_seqlens=torch.tensor(8)), "cu_seqlens: must be"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(rk.RopeShapeError, match=words):
        rk.context_parallel_positions(**(dict(num_tokens=8, cp_size=2, cp_rank=0) | changes))


def test_a_compiled_call_is_whole() -> None:
    torch._dynamo.reset()
    bounds = torch.tensor([0, 8, 16])

    def positions(bounds: Tensor) -> Tensor:
        return rk.context_parallel_positions(16, cp_size=2, cp_rank=1, cu_seqlens=bounds)

    assert torch.equal(torch.compile(positions, fullgraph=True, backend="aot_eager")(bounds), positions(bounds))
    torch._dynamo.reset()
