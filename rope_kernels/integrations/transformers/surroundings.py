"""The state of torch in which modules and functions are measured, whatever the caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["measuring"]


@contextlib.contextmanager
def measuring(gradients: bool = False) -> Iterator[None]:
    """fp32 on the CPU, with random numbers of its own, without autocast and inference mode."""
    dtype = torch.get_default_dtype()
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ):
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
