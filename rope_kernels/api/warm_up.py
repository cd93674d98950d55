"""warm_up: prepares a config's kernels and device tensors, before a CUDA graph is captured or a server starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS
from ..core.names import LayoutName
from ..errors import RopeShapeError
from .append import apply_rope_append
from .apply import apply_rope, apply_rope_
from .head_norm import HeadNorm
from .kv_cache import KVCache

__all__ = ["warm_up"]


def warm_up(
    cfg: RopeConfig,
    device: torch.device | str | int,
    *,
    q_shape: Sequence[int],
    k_shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    layout: LayoutName = "bshd",
    q_norm: HeadNorm | None = None,
    k_norm: HeadNorm | None = None,
    v_norm: HeadNorm | None = None,
    cache: KVCache | None = None,
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
        layout: "bshd", "bhsd", "sbhd" or "thd".
        q_norm: of the calls, as in ``apply_rope``.
        k_norm: the same for k.
        v_norm: the same for v, with ``cache``.
        cache: make calls of ``apply_rope_append`` with it instead, which store nothing: slots of its dtype are -1.

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
        call = partial(_call, q_norm=q_norm, k_norm=k_norm)
        if cache is not None:
            v = None if cache.v is None else q.new_zeros(_shape_of_v(q, cache.v, layout))
            call = partial(_append, v=v, cache=_nowhere(cache, q, layout), q_norm=q_norm, k_norm=k_norm, v_norm=v_norm)
        elif v_norm is not None:
            raise RopeShapeError("v_norm: given without cache")
        for positions, offset in _places(cfg, batch, q.shape[axes.tokens], q.device):
            call(q, k, positions, cfg, layout, offset)
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


def _shape_of_v(q: Tensor, v_cache: Tensor, layout: str) -> list[int]:
    shape = list(q.shape)
    shape[LAYOUTS[layout].heads], shape[-1] = v_cache.shape[2:]
    return shape


def _nowhere(cache: KVCache, q: Tensor, layout: str) -> KVCache:
    """The cache with a negative slot for each token, in the form of its slots."""
    axes = LAYOUTS[layout]
    grid = (q.shape[axes.tokens],) if axes.batch is None else (q.shape[axes.batch], q.shape[axes.tokens])
    slots = torch.full(grid, -1, dtype=cache.slots.dtype, device=q.device)
    return KVCache(cache.k, cache.v, slots if cache.slots.dim() > 1 else slots.flatten(), cache.k_scale, cache.v_scale)


@torch.no_grad()
def _append(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, layout: LayoutName, offset: Tensor | None,
    v: Tensor | None, cache: KVCache, q_norm: HeadNorm | None, k_norm: HeadNorm | None, v_norm: HeadNorm | None,
) -> None:  # fmt: skip
    apply_rope_append(
        q, k, v, positions, cfg, cache, layout=layout, offset=offset, q_norm=q_norm, k_norm=k_norm, v_norm=v_norm
    )


def _call(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, layout: LayoutName, offset: Tensor | None,
    q_norm: HeadNorm | None, k_norm: HeadNorm | None,
) -> None:  # fmt: skip
    with torch.no_grad():
        apply_rope_(q, k, positions, cfg, layout=layout, offset=offset, q_norm=q_norm, k_norm=k_norm)
    leaves = [x.detach().requires_grad_() for x in (q, k) if x is not None]
    first, second = leaves[0], None if k is None else leaves[1]
    made = apply_rope(first, second, positions, cfg, layout=layout, offset=offset, q_norm=q_norm, k_norm=k_norm)
    rotated = [y for y in made if y is not None]
    torch.autograd.grad(rotated, leaves, [torch.zeros_like(y) for y in rotated])
