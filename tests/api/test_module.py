"""The module holds nothing that a cast, a meta device or pickling could change."""

import pickle

import pytest
import torch
from support import cases

import rope_kernels as rk


@pytest.mark.parametrize("name", ["llama3", "longrope", "dynamic", "table"])
def test_casts_and_meta_init_leave_the_angles_exact(name):
    config = cases.config_of(cases.Case("module", cases.CONFIGS[name]))
    with torch.device("meta"):
        module = rk.RotaryEmbedding(config)
    q, k = torch.randn(2, 3, 4, config.head_dim), torch.randn(2, 3, 1, config.head_dim)
    expected = rk.apply_rope(q, k, None, config)
    for changed in (
        module,
        module.to(torch.bfloat16),
        module.to_empty(device="cpu"),
        pickle.loads(pickle.dumps(module)),
    ):
        assert not list(changed.parameters())
        assert not list(changed.buffers())
        assert all(torch.equal(a, b) for a, b in zip(changed(q, k), expected, strict=True))


def test_layout_and_options_reach_the_call():
    config = rk.RopeConfig(head_dim=64)
    module = rk.RotaryEmbedding(config, layout="bhsd")
    q = torch.randn(2, 4, 3, 64)
    expected, _ = rk.apply_rope(q, None, None, config, layout="bhsd", offset=7, inverse=True)
    got, nothing = module(q, offset=7, inverse=True)
    assert torch.equal(got, expected)
    assert nothing is None
    assert repr(module) == "RotaryEmbedding(default, head_dim=64, pairing=half, layout=bhsd)"


def test_a_module_of_something_else():
    with pytest.raises(TypeError, match="cfg: got str, a RopeConfig is needed"):
        rk.RotaryEmbedding("llama3")
    with pytest.raises(rk.RopeShapeError, match="layout: got 'hsbd', allowed are bshd, bhsd, sbhd, thd"):
        rk.RotaryEmbedding(rk.RopeConfig(head_dim=16), "hsbd")
