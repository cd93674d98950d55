"""Calls by the rows of an engine's table skip torch's dispatcher, in place and with outputs, by one table or a pair."""

import pytest
import torch

import rope_kernels as rk

Q, K, POSITIONS = torch.randn(3, 4, 16), torch.randn(3, 2, 16), torch.tensor([0, 5, 2])
TABLE = torch.randn(8, 16)


@pytest.mark.parametrize("cache", [TABLE, TABLE.double(), TABLE.chunk(2, -1)], ids=["one", "float64", "pair"])
@pytest.mark.parametrize("k", [K, None], ids=["qk", "q"])
def test_a_decode_step_takes_the_fast_path(monkeypatch, cache, k):
    for name in ("rotate_cached_", "rotate_cached_out"):
        monkeypatch.setattr(f"rope_kernels.api.cached.{name}", lambda *args: pytest.fail("the checked door"))
    keys = None if k is None else k.clone()
    rk.apply_rope_cached_(Q.clone(), keys, POSITIONS, cache)
    out = torch.empty_like(Q), None if k is None else torch.empty_like(k)
    rk.apply_rope_cached_(Q, k, POSITIONS, cache, out=out, rotary_dim=16)
