"""Calls with a norm that need no gradient skip torch's dispatcher, in every form."""

import pytest
import torch

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=64)


def test_a_decode_step_takes_the_fast_path(monkeypatch):
    """In every form: the checked door is not reached."""
    monkeypatch.setattr("rope_kernels.api.normed.prepare", lambda *args: pytest.fail("the checked door"))
    q, k, positions = torch.randn(4, 1, 8, 64), torch.randn(4, 1, 2, 64), torch.arange(4)[:, None]
    norms = dict(q_norm=rk.HeadNorm(torch.ones(64).half(), 1e-6), k_norm=rk.HeadNorm(None, 1e-6, after_rope=True))
    rk.apply_rope(q, k, positions, CONFIG, **norms)
    rk.apply_rope_(q, k, positions, CONFIG, **norms)
    rk.apply_rope(q, k, positions, CONFIG, **norms, out=(torch.empty_like(q), torch.empty_like(k)))
