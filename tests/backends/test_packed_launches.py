"""A packed batch launches what one sequence of as many tokens launches: equal grids, no program without work."""

import pytest
import torch
from support.calls import inputs

import rope_kernels as rk
from rope_kernels.api.prepare import prepare
from rope_kernels.core.spec import parse_text

pytest.importorskip("triton")

from emulation.triton_driver import Launch, emulated
from rope_kernels.backends.triton import launch as triton_launch

CONFIG = rk.RopeConfig(head_dim=64)
TOKENS, HEADS, SEQUENCES = 1024, (8, 2), 100


def launched(bounds: list[int]) -> Launch:
    """The one launch of an emulated sm_90 for packed sequences with these bounds."""
    q, k = (torch.randn(TOKENS, heads, 64, dtype=torch.bfloat16) for heads in HEADS)
    args = prepare(q, k, None, CONFIG, layout="thd", cu_seqlens=torch.tensor(bounds))
    views = [x[None] for x in (q, k, torch.full_like(q, float("nan")), torch.full_like(k, float("nan")))]
    with emulated(90) as launches:
        triton_launch.rotate(*views, inputs(args), parse_text(args.text).spec)
    expected = rk.apply_rope(q, k, None, CONFIG, layout="thd", cu_seqlens=torch.tensor(bounds))
    for got, wanted in zip(views[2:], expected, strict=True):
        assert (got[0].float() - wanted.float()).abs().max() < 0.05
    [launch] = launches
    return launch


def test_a_packed_batch_launches_what_one_sequence_does():
    cuts = torch.randperm(TOKENS - 1, generator=torch.Generator().manual_seed(0))[: SEQUENCES - 1] + 1
    packed, one = launched([0, *sorted(cuts.tolist()), TOKENS]), launched([0, TOKENS])
    assert packed.grid == one.grid
    assert packed.counts.stores == one.counts.stores
    elements = TOKENS * sum(HEADS) * 64
    assert sum(size * count for size, count in one.counts.stores.items()) == 2 * elements
    programs = one.grid[0] * one.grid[1] * one.grid[2]
    assert elements % programs == 0  # every program stores an equal, full share
