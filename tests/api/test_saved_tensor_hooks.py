"""Hooks on saved tensors, as of activation checkpointing: called once, and what they raise reaches the caller."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=64)
POSITIONS = torch.arange(16)
COS, SIN = rk.cos_sin(POSITIONS[None], CONFIG)


def rotate(q):
    return rk.apply_rope(q, None, POSITIONS, CONFIG)[0]


def rotate_in_place(q):
    return rk.apply_rope_(q * 1.0, None, POSITIONS, CONFIG)[0]


def norm_and_rotate(q):
    norm = rk.HeadNorm(torch.full((64,), 0.5), 1e-6)
    return rk.apply_rope(q, None, POSITIONS, CONFIG, q_norm=norm)[0]


def rotate_by_table(q):
    return rk.apply_rotary_pos_emb(q, None, COS, SIN, unsqueeze_dim=2)[0]


CALLS = [rotate, rotate_in_place, norm_and_rotate, rotate_by_table]


class UnknownError(Exception):
    """Not of any kind that the package could expect."""


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("place", ["alone", "first", "last", "between"])
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(call, place, early_stop, reentrant, backend):
    def function(x):
        x = x.sin() if place in ("last", "between") else x
        x = call(x)
        return x.sin() if place in ("first", "between") else x

    q = torch.randn(2, 16, 4, 64, requires_grad=True)
    wanted = torch.autograd.grad(function(q).square().sum(), q)[0]
    with set_checkpoint_early_stop(early_stop):
        y = checkpoint(function, q, use_reentrant=reentrant)
        y.square().sum().backward()
    assert torch.equal(q.grad, wanted)


@pytest.mark.parametrize("call", [rotate, rotate_in_place, norm_and_rotate], ids=lambda call: call.__name__)
@pytest.mark.parametrize("error", [UnknownError, RuntimeError, ValueError, TypeError, rk.RopeShapeError])
def test_what_a_hook_raises_is_raised_once(call, error):
    calls = []

    def pack(x):
        calls.append(x)
        if x is POSITIONS:
            raise error("of the hook")
        return x

    q = torch.randn(2, 16, 4, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(error, match="of the hook"):
        call(q)
    assert sum(x is POSITIONS for x in calls) == 1
