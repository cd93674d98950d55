"""The forms of our call (in place, ``out=``, allocating), and a memory floor for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..api.apply import apply_rope, apply_rope_
from ..config import RopeConfig

__all__ = ["FLOORS", "FORMS", "TimedCall"]

TimedCall = Callable[[], object]
"""A call without arguments, ready to be timed."""


def _in_place(config: RopeConfig, q: Tensor, k: Tensor, positions: Tensor) -> TimedCall:
    return lambda: apply_rope_(q, k, positions, config)


def _out(config: RopeConfig, q: Tensor, k: Tensor, positions: Tensor) -> TimedCall:
    out = torch.zeros_like(q), torch.zeros_like(k)
    return lambda: apply_rope(q, k, positions, config, out=out)


def _allocating(config: RopeConfig, q: Tensor, k: Tensor, positions: Tensor) -> TimedCall:
    return lambda: apply_rope(q, k, positions, config)


FORMS: dict[str, Callable[[RopeConfig, Tensor, Tensor, Tensor], TimedCall]] = {
    "in place": _in_place,
    "out=": _out,
    "allocating": _allocating,
}
"""Makes our call in a form; the call can be repeated, and returns the rotated (q, k)."""


def _copy(q: Tensor, k: Tensor) -> TimedCall:
    out = torch.zeros_like(q), torch.zeros_like(k)
    return lambda: (out[0].copy_(q), out[1].copy_(k))


def _pass_in_place(q: Tensor, k: Tensor) -> TimedCall:
    words = [x.clone().view(torch.int32) for x in (q, k)]
    return lambda: [w.bitwise_not_() for w in words]


FLOORS: dict[str, tuple[str, Callable[[Tensor, Tensor], TimedCall]]] = {
    "in place": ("bitwise_not_", _pass_in_place),
    "out=": ("copy_", _copy),
    "allocating": ("clone", lambda q, k: lambda: (q.clone(), k.clone())),
}
"""For each form, a plain pass over the same memory, and its name."""
