"""torch.compile on a device: whole graphs, forward and backward, with and without CUDA graphs of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from support.compiled_model import CONFIGS, HEAD_DIM, Model, positions_for
from torch import Tensor
from torch._dynamo.utils import counters

import rope_kernels as rk

from .outcomes import Check, Setup

__all__ = ["compile_checks"]

NAMED: dict[str, Any] = CONFIGS
LENGTHS = ((5, 0), (9, 30), (33, 700))
"""(tokens, first position); the lengths of longrope and dynamic are passed between the first and the second."""
STARTS = (0, 9, 12, 700, 3)
"""First positions of calls of one shape; the third reaches longrope's original length."""
TOKENS = 5
FORWARD: dict[str, Any] = dict(rtol=1e-4, atol=1e-4)
BACKWARD: dict[str, Any] = dict(rtol=1e-3, atol=1e-3)
"""Compiled and eager matrix products sum in another order; a rotation by a wrong position is off by 0.1 and more."""
Compiled = Callable[..., Any]


def _compare(model: Model, compiled: Compiled, x: Tensor, positions: Tensor) -> None:
    """Forward and gradients of all parameters."""
    parameters = list(model.parameters())
    expected = model(x, positions)
    wanted = torch.autograd.grad(expected.square().mean(), parameters)
    torch.compiler.cudagraph_mark_step_begin()
    got = compiled(x, positions)
    torch.testing.assert_close(got, expected, **FORWARD)
    gradients = torch.autograd.grad(got.square().mean(), parameters)
    torch.testing.assert_close(gradients, wanted, **BACKWARD)


def check_lengths(name: str, backend: str, setup: Setup) -> None:
    """Dynamic shapes."""
    torch._dynamo.reset()
    device = setup.device
    with rk.use_backend(backend):
        model = Model(rk.RopeConfig(**NAMED[name])).to(device)
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=setup.compiler)
        for tokens, start in LENGTHS:
            x = torch.randn(2, tokens, 2 * HEAD_DIM, device=device)
            _compare(model, compiled, x, positions_for(name, tokens, start).to(device))


def check_overhead(name: str, backend: str, setup: Setup) -> None:
    """mode="reduce-overhead", over several calls of one shape: recorded, then replayed, and never given up."""
    torch._dynamo.reset()
    counters.clear()
    device = setup.device
    how: dict[str, Any] = dict(mode="reduce-overhead") if device.type == "cuda" else dict(backend=setup.compiler)
    with rk.use_backend(backend):
        model = Model(rk.RopeConfig(**NAMED[name])).to(device)
        compiled = torch.compile(model, fullgraph=True, dynamic=False, **how)
        for start in STARTS:
            x = torch.randn(2, TOKENS, 2 * HEAD_DIM, device=device)
            _compare(model, compiled, x, positions_for(name, TOKENS, start).to(device))
    skips = counters["inductor"]["cudagraph_skips"]
    assert skips == 0, f"{skips} graphs were run without CUDA graphs"


def check_same_bits(name: str, backend: str, setup: Setup) -> None:
    """The operator alone is the same kernel, compiled into a graph or not: out of place, in place and into buffers."""
    torch._dynamo.reset()
    config = rk.RopeConfig(**NAMED[name])
    positions = positions_for(name, TOKENS, 12).to(setup.device)
    q, k = (torch.randn(2, TOKENS, heads, HEAD_DIM, device=setup.device) for heads in (4, 2))
    out = torch.full_like(q, float("nan")), torch.full_like(k, float("nan"))

    def everywhere(q: Tensor, k: Tensor, q_out: Tensor, k_out: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        rotated = rk.apply_rope(q, k, positions, config)
        rk.apply_rope(q, k, positions, config, out=(q_out, k_out))
        rk.apply_rope_(q, k, positions, config)
        assert rotated[1] is not None
        return rotated[0], rotated[1]

    with rk.use_backend(backend):
        eager = rk.apply_rope(q, k, positions, config)
        again = rk.apply_rope_(q.clone(), k.clone(), positions, config)
        apart = torch.compile(everywhere, fullgraph=True, backend=setup.compiler)(q, k, *out, positions)
    for side, (y, z) in enumerate(zip(eager, again, strict=True)):
        assert y is not None
        assert z is not None
        assert torch.equal(apart[side], y)
        assert torch.equal(out[side], y)
        assert torch.equal((q, k)[side], z)


KINDS = {"dynamic": check_lengths, "reduce-overhead": check_overhead, "bits": check_same_bits}


def compile_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """All of these, for one backend."""
    for name in NAMED:
        for what, function in KINDS.items():
            yield Check(f"compile/{backend}/{what}/{name}", partial(function, name, backend, setup))
