"""How fast a device is, measured on that device: bf16, heads of Llama 8B, with nothing of the tensors in its L2 cache.

GB/s count what must move: q and k read once and written once, and the positions. Beside each stands a copy of the same
tensors on the same device. The times are of the device; what Python does before a launch is hidden behind the emptying
of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import rope_kernels as rk

from .outcomes import Check, Figures, NotHereError, Setup
from .placing import config_named

__all__ = ["SHAPES", "speed_checks"]

Q_HEADS, K_HEADS = 32, 8
SHAPES = (("prefill", 1, 4096), ("prefill", 1, 32768), ("decode", 1, 1), ("decode", 32, 1))
"""(phase, batch, tokens)"""
QUANTILES = (0.5, 0.2, 0.8)
Timer = Callable[[Callable[[], object]], tuple[float, float, float]]
"""Milliseconds of a call: the median, and where the middle three fifths begin and end."""


def timer() -> Timer:
    """Triton's, which empties the L2 cache before every call."""
    from triton.testing import do_bench

    return lambda call: tuple(do_bench(call, warmup=50, rep=300, quantiles=QUANTILES))


def measured(batch: int, tokens: int, backend: str, device: torch.device, time: Timer) -> Figures:
    """Into given buffers, in place, and the copy."""
    config = config_named("llama3")
    q, k = (torch.randn(batch, tokens, n, config.head_dim, device=device).bfloat16() for n in (Q_HEADS, K_HEADS))
    out = torch.empty_like(q), torch.empty_like(k)
    positions = torch.arange(tokens, device=device)[None] + 1000 * torch.arange(batch, device=device)[:, None]

    def copy() -> None:
        out[0].copy_(q)
        out[1].copy_(k)

    with rk.use_backend(backend):
        into = time(lambda: rk.apply_rope(q, k, positions, config, out=out))
        in_place = time(lambda: rk.apply_rope_(q, k, positions, config))
    copied = time(copy)
    both_ways = 2 * (q.nbytes + k.nbytes)
    figures: Figures = {"tokens": tokens, "batch": batch, "out_time_over_copy": into[0] / copied[0]}
    for name, times, extra in (("out", into, positions), ("in_place", in_place, positions), ("copy", copied, None)):
        nbytes = both_ways + (0 if extra is None else extra.nbytes)
        figures |= {f"{name}_{part}": value for part, value in zip(("ms", "ms_20", "ms_80"), times, strict=True)}
        figures |= {f"{name}_bytes": nbytes, f"{name}_gb_per_s": nbytes / times[0] / 1e6}
    return figures


def speed_checks(setup: Setup, backend: str, time: Timer | None = None) -> Iterator[Check]:
    """Each shape, for one backend. Nothing is asked of the figures."""
    for phase, batch, tokens in SHAPES:
        size = tokens if phase == "prefill" else batch
        run = partial(_timed, batch, tokens, backend, setup.device, time)
        yield Check(f"speed/{backend}/{phase} {size}", run)


def _timed(batch: int, tokens: int, backend: str, device: torch.device, time: Timer | None) -> Figures:
    if time is None and device.type != "cuda":
        raise NotHereError("nothing is timed without a GPU")
    return measured(batch, tokens, backend, device, time or timer())
