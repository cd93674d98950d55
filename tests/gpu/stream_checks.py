"""Launches go to the current stream of the tensors' device, also where there are other streams and devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch

import rope_kernels as rk

from .graph_checks import NEAR, counted
from .outcomes import Check, NotHereError, Setup
from .placing import config_named

__all__ = ["stream_checks"]

CYCLES = 100_000_000
"""Of idling on the stream, tens of milliseconds: a launch elsewhere would be long done with the old positions."""


def _expect(backend: str, device: torch.device, config: str, stream: contextlib.AbstractContextManager[object]) -> None:
    """Rotate right behind a late change of the positions."""
    cfg = config_named(config)
    q = torch.randn(2, 3, 4, cfg.head_dim, generator=torch.Generator().manual_seed(0))
    there, positions = q.to(device), counted(0).to(device)
    late = counted(70).to(device)
    with rk.use_backend(backend):
        rk.apply_rope(there, None, positions, cfg)  # compiled, tables made
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        with stream:
            if device.type == "cuda":
                torch.cuda._sleep(CYCLES)
            positions.copy_(late, non_blocking=True)
            rotated, _ = rk.apply_rope(there, None, positions, cfg)
            got = rotated.cpu()
    with rk.use_backend("reference"):
        wanted, _ = rk.apply_rope(q, None, counted(70), cfg)
    torch.testing.assert_close(got, wanted, rtol=0, atol=NEAR)


def check_side_stream(config: str, backend: str, device: torch.device) -> None:
    """On a stream of its own; on the CPU there are none, and this is a plain call."""
    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()
    _expect(backend, device, config, stream)


def check_other_device(backend: str, device: torch.device) -> None:
    """Tensors on another device than the current one."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        raise NotHereError("there are no two CUDA devices")
    other = torch.device("cuda", (torch.cuda.current_device() + 1) % torch.cuda.device_count())
    _expect(backend, other, "longrope", torch.cuda.stream(torch.cuda.Stream(other)))
    with torch.cuda.device(device):
        _expect(backend, other, "llama3", contextlib.nullcontext())


def stream_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """All of these, for one backend."""
    for config in ("llama3", "longrope", "dynamic", "mrope_interleaved"):
        run = partial(check_side_stream, config, backend, setup.device)
        yield Check(f"streams/{backend}/side stream/{config}", run)
    yield Check(f"streams/{backend}/other device", partial(check_other_device, backend, setup.device))
