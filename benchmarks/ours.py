"""Our calls in each of their forms, checked against plain torch before they are timed; and the floors beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk
from shapes import Model

__all__ = ["FLOORS", "FORMS", "Call", "Inputs", "checked_gradients", "floor", "ours", "peer_bound"]

Call = Callable[[], object]
Inputs = tuple[Tensor, Tensor, Tensor]
_CHECKED_TOKENS = 64
_CONTRACT = 5e-7


def _in_place(model: Model, q: Tensor, k: Tensor, positions: Tensor) -> Call:
    config = model.config
    return lambda: rk.apply_rope_(q, k, positions, config)


def _out(model: Model, q: Tensor, k: Tensor, positions: Tensor) -> Call:
    out, config = (torch.zeros_like(q), torch.zeros_like(k)), model.config
    return lambda: rk.apply_rope(q, k, positions, config, out=out)


def _allocating(model: Model, q: Tensor, k: Tensor, positions: Tensor) -> Call:
    config = model.config
    return lambda: rk.apply_rope(q, k, positions, config)


FORMS: dict[str, Callable[[Model, Tensor, Tensor, Tensor], Call]] = {
    "in place": _in_place,
    "out=": _out,
    "allocating": _allocating,
}


def ours(form: str, model: Model, x: Inputs) -> Call:
    """Our call in one form, its result checked on copies.

    Raises:
        AssertionError: plain torch has another result.
    """
    q, k, positions = x
    results: Any = FORMS[form](model, q.clone(), k.clone(), positions)()
    tail = slice(-_CHECKED_TOKENS, None)
    chosen = positions[..., tail] if q.shape[1] > 1 else positions
    with rk.use_backend("reference"):
        length = q.shape[1] if q.shape[1] > 1 else None  # of the whole call, which longrope chooses by
        wanted = rk.apply_rope(q[:, tail], k[:, tail], chosen, model.config, seq_len=length)
    for name, got, want in zip("qk", results, wanted, strict=True):
        bound = (_CONTRACT + torch.finfo(q.dtype).eps) * want.abs().max().float()
        error = (got[:, tail].float() - want.float()).abs().max()
        assert error <= bound, f"{name}, {form}: off by {error}, {bound} is allowed"
    return FORMS[form](model, q, k, positions)


def peer_bound(x: Inputs) -> float:
    """What others may be off by, of the largest value: tables rounded to q's dtype, angles in float32."""
    return 3 * torch.finfo(x[0].dtype).eps + 2.0**-22 * (int(x[2].max()) + 1)


def gradients(call: Call, x: Inputs, heads_first: bool = False) -> Call:
    """The call and its backward pass; q and k (batch, tokens, heads, head_dim) are leaves."""
    leaves = x[:2]
    upstream = tuple(torch.ones_like(leaf.transpose(1, 2) if heads_first else leaf) for leaf in leaves)
    return lambda: torch.autograd.grad(call(), leaves, upstream)


def checked_gradients(call: Call, model: Model, x: Inputs, heads_first: bool = False) -> Call:
    """:func:`gradients` of anybody's call, checked against plain torch's adjoint as loosely as peers' results are.

    Raises:
        AssertionError: a gradient differs from it.
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


def _copy(q: Tensor, k: Tensor) -> Call:
    out = torch.zeros_like(q), torch.zeros_like(k)
    return lambda: (out[0].copy_(q), out[1].copy_(k))


def _pass_in_place(q: Tensor, k: Tensor) -> Call:
    words = [x.clone().view(torch.int32) for x in (q, k)]
    return lambda: [w.bitwise_not_() for w in words]


FLOORS: dict[str, tuple[str, Callable[[Tensor, Tensor], Call]]] = {
    "in place": ("bitwise_not_", _pass_in_place),
    "out=": ("copy_", _copy),
    "allocating": ("clone", lambda q, k: lambda: (q.clone(), k.clone())),
}
"""What memory allows for each form: a pass over the same bytes, and its name."""


def floor(form: str, x: Inputs) -> Call:
    """The floor of a form on the same tensors."""
    return FLOORS[form][1](x[0], x[1])
