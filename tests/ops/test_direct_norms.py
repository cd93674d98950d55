"""Calls with a norm that need no gradient skip torch's dispatcher, in every form."""

import pytest
import torch

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=64)


@pytest.mark.parametrize("form", ["tensor", "parameter", "frozen parameter"])
def test_a_decode_step_takes_the_fast_path(monkeypatch, form):
    """In every form: the checked door is not reached, nor by a module's own weight where no gradient is needed."""
    for module in ("normed", "append"):
        monkeypatch.setattr(f"rope_kernels.api.{module}.prepare", lambda *args, **more: pytest.fail("the checked door"))
    q, k, positions = torch.randn(4, 1, 8, 64), torch.randn(4, 1, 2, 64), torch.arange(4)[:, None]
    weight = torch.ones(64).half()
    if form != "tensor":
        weight = torch.nn.Parameter(weight, requires_grad=form == "parameter")
    norms = dict(q_norm=rk.HeadNorm(weight, 1e-6), k_norm=rk.HeadNorm(None, 1e-6, after_rope=True))
    cache = rk.KVCache(torch.zeros(2, 4, 2, 64), torch.zeros(2, 4, 2, 64), torch.arange(4))
    if form == "parameter":
        with pytest.raises(pytest.fail.Exception):
            rk.apply_rope(q, k, positions, CONFIG, **norms)
    with torch.set_grad_enabled(form != "parameter"):
        calls_by_the_fast_path(q, k, positions, norms, cache)


def calls_by_the_fast_path(q, k, positions, norms, cache):
    rk.apply_rope_append(q, k, k, positions, CONFIG, cache, **norms, v_norm=norms["q_norm"])
    rk.apply_rope(q, k, positions, CONFIG, **norms)
    rk.apply_rope_(q, k, positions, CONFIG, **norms)
    rk.apply_rope(q, k, positions, CONFIG, **norms, out=(torch.empty_like(q), torch.empty_like(k)))
