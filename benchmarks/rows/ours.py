"""Our calls in each form, checked against plain torch before they are timed, and the memory floors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk
from rope_kernels.measuring.forms import FLOORS, FORMS, TimedCall
from rope_kernels.measuring.peers import bound

from .shapes import Model

__all__ = ["FLOORS", "FORMS", "Inputs", "TimedCall", "checked_gradients", "floor", "heads_first", "ours", "peer_bound"]

Inputs = tuple[Tensor, Tensor, Tensor]
_CHECKED_TOKENS = 64
_CONTRACT = 5e-7


def ours(form: str, model: Model, x: Inputs) -> TimedCall:
    """Our call in one form, after its result on copies was checked.

    Raises:
        AssertionError: the result differs from plain torch's.
    """
    q, k, positions = x
    results: Any = FORMS[form](model.config, q.clone(), k.clone(), positions)()
    tail = slice(-_CHECKED_TOKENS, None)
    chosen = positions[..., tail] if q.shape[1] > 1 else positions
    with rk.use_backend("reference"):
        length = q.shape[1] if q.shape[1] > 1 else None  # of the whole call: longrope chooses its list by it
        wanted = rk.apply_rope(q[:, tail], k[:, tail], chosen, model.config, seq_len=length)
    for name, got, want in zip("qk", results, wanted, strict=True):
        bound = (_CONTRACT + torch.finfo(q.dtype).eps) * want.abs().max().float()
        error = (got[:, tail].float() - want.float()).abs().max()
        assert error <= bound, f"{name}, {form}: off by {error}, {bound} is allowed"
    return FORMS[form](model.config, q, k, positions)


def heads_first(model: Model, x: Inputs) -> TimedCall:
    """Our call in place on contiguous (batch, heads, seq, head_dim) tensors, after its result was checked.

    Raises:
        AssertionError: the bits differ from those of (batch, seq, heads, head_dim) tensors.
    """
    q, k, positions = x
    wanted = rk.apply_rope(q, k, positions, model.config)
    transposed = [t.transpose(1, 2).contiguous() for t in (q, k)]
    for got, want in zip(rk.apply_rope(*transposed, positions, model.config, layout="bhsd"), wanted, strict=True):
        assert torch.equal(got.transpose(1, 2), want), "heads before tokens: the bits differ from tokens before heads"
    return lambda: rk.apply_rope_(*transposed, positions, model.config, layout="bhsd")


def peer_bound(x: Inputs) -> float:
    """The error allowed to a peer, relative to the largest value."""
    return bound(x[0].dtype, int(x[2].max()))


def gradients(call: TimedCall, x: Inputs, heads_first: bool = False) -> TimedCall:
    """A call with its backward pass; q and k (batch, tokens, heads, head_dim) are leaves."""
    leaves = x[:2]
    upstream = tuple(torch.ones_like(leaf.transpose(1, 2) if heads_first else leaf) for leaf in leaves)
    return lambda: torch.autograd.grad(call(), leaves, upstream)


def checked_gradients(call: TimedCall, model: Model, x: Inputs, heads_first: bool = False) -> TimedCall:
    """:func:`gradients` of our call or a peer's, checked against plain torch's adjoint with a peer's tolerance.

    Raises:
        AssertionError: a gradient differs from the adjoint.
    """
    run = gradients(call, x, heads_first)
    found: Any = run()
    ones = [torch.ones_like(leaf, requires_grad=False) for leaf in x[:2]]
    with rk.use_backend("reference"):
        wanted = rk.apply_rope(ones[0], ones[1], x[2], model.config, inverse=True)
    for name, got, want in zip("qk", found, wanted, strict=True):
        error = ((got.float() - want.float()).abs().max() / want.abs().max()).item()
        bound = peer_bound(x)
        assert error <= bound, f"{name}'s gradient is off by {error} of the largest value, {bound} is allowed"
    return run


def floor(form: str, x: Inputs) -> TimedCall:
    """The memory floor of a form on the same tensors."""
    return FLOORS[form][1](x[0], x[1])
