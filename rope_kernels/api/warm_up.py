"""warm_up: prepares a config's kernels and device tensors, before a CUDA graph is captured or a server starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS
from ..errors import RopeShapeError
from .apply import apply_rope, apply_rope_

__all__ = ["warm_up"]


def warm_up(
    cfg: RopeConfig,
    device: torch.device | str | int,
    *,
    q_shape: Sequence[int],
    k_shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "bshd",
) -> None:
    """Compile and load the kernels for calls of these shapes, and put the config's tables on the device.

    A kernel cannot be loaded while a CUDA graph is captured. This makes the calls of ``apply_rope`` (with its backward
    pass) and ``apply_rope_`` once, on tensors of its own: with int64 and int32 positions of shape (seq,) and (batch,
    seq), and with positions counted from 0, from one offset and from one per sequence. Other calls need one call of
    their own before the capture: other dtypes of positions, packed sequences, tensors that do not lie in memory as
    ``torch.empty`` makes them.

    Args:
        cfg: the RoPE config.
        device: a CUDA device; on a CPU there is little to prepare.
        q_shape: of q, in ``layout``.
        k_shape: of k; ``None`` without k.
        dtype: of q and k.
        layout: "bshd", "bhsd" or "thd".

    Raises:
        RopeShapeError: a shape does not fit the layout or the config.
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise RopeShapeError(f"layout: got {layout!r}, allowed are {', '.join(LAYOUTS)}")
    axes = LAYOUTS[layout]
    rank = 3 if axes.batch is None else 4
    for name, shape in (("q_shape", q_shape), ("k_shape", k_shape)):
        if shape is not None and len(shape) != rank:
            raise RopeShapeError(f"{name}: got {tuple(shape)}, must have {rank} dimensions for layout {layout!r}")
    with torch.inference_mode(False), torch.enable_grad():
        q = torch.zeros(*q_shape, dtype=dtype, device=device)
        k = None if k_shape is None else torch.zeros(*k_shape, dtype=dtype, device=device)
        batch = None if axes.batch is None else q.shape[axes.batch]
        for positions, offset in _places(cfg, batch, q.shape[axes.tokens], q.device):
            _call(q, k, positions, cfg, layout, offset)
    if q.is_cuda:
        torch.cuda.synchronize(q.device)


def _places(
    cfg: RopeConfig, batch: int | None, tokens: int, device: torch.device
) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """(positions, offset) of the calls."""
    lead = (cfg.num_axes,) if cfg.num_axes > 1 else ()
    shapes = [(tokens,)] if batch is None else [(batch, tokens)] if lead else [(tokens,), (batch, tokens)]
    for dtype in (torch.int64, torch.int32):
        for shape in shapes:
            yield torch.zeros(*lead, *shape, dtype=dtype, device=device), None
    yield None, None
    for count in {1, batch or 1}:
        yield None, torch.zeros(count, dtype=torch.int64, device=device)


def _call(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, layout: str, offset: Tensor | None
) -> None:
    apply_rope_(q, k, positions, cfg, layout=layout, offset=offset)
    leaves = [x.detach().requires_grad_() for x in (q, k) if x is not None]
    made = apply_rope(leaves[0], leaves[1] if k is not None else None, positions, cfg, layout=layout, offset=offset)
    rotated = [y for y in made if y is not None]
    torch.autograd.grad(rotated, leaves, [torch.zeros_like(y) for y in rotated])
