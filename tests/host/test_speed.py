"""The times of `make gpu-check`: what is timed is one launch on both sides, and a graph of them can be captured."""

from __future__ import annotations

import pytest
import torch
from gpu import speed

import rope_kernels as rk
from emulation.null_gpu import Driver, Runtime

DRIVER, RUNTIME = Driver(), Runtime()
DEVICE = torch.device("cuda", 0)
LAUNCHES = {"out": 1, "in_place": 1, "pass": 1, "copy": 0}
"""Of kernels: the copy is one of the runtime's own."""


@pytest.mark.parametrize("backend", ["triton", "native"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_what_is_timed_is_one_launch(name: str, backend: str) -> None:
    call = speed.calls_of(speed.tensors(2, 3, DEVICE))[name]
    with rk.use_backend(backend):
        call()
        before = DRIVER.launches + RUNTIME.launches
        call()
    assert DRIVER.launches + RUNTIME.launches - before == LAUNCHES[name]


@pytest.mark.parametrize("backend", ["triton", "native"])
def test_every_shape_is_captured(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda begin, end: 1.0)
    monkeypatch.setattr(speed, "MOST_LAUNCHES", 3)
    figures = speed.measured(32, 1, backend, DEVICE, lambda calls: speed.replays_of(calls, DEVICE))
    assert figures["out_ms"] == pytest.approx(1 / 3)
