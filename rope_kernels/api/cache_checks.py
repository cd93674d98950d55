"""The checks of a :class:`KVCache` against the q, k and v of a call. All of them run before anything is written."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layouts import LAYOUTS
from ..errors import RopeShapeError
from . import checks
from .kv_cache import KVCache
from .overlap import has_memory, shares_memory, writes_twice

__all__ = ["check_caches", "check_memory", "checked_outputs", "checked_slots", "flat_scale"]

_QUANTISED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
_SLOT_DTYPES = (torch.int32, torch.int64)


def check_caches(q: Tensor, k: Tensor | None, v: Tensor | None, cache: KVCache, layout: str) -> None:
    """Raise :class:`RopeShapeError` unless v fits q, and both caches fit k and v, their scales and each other."""
    if v is not None:
        checks.check_tensor("v", v)
        checks.check_beside("v", v, v.shape[-1] if v.dim() else 0, q, layout)
    sides = (("k", k, cache.k, cache.k_scale), ("v", v, cache.v, cache.v_scale))
    for name, x, paged, scale in sides:
        if (x is None) != (paged is None):
            given, missing = (name, f"cache.{name}") if paged is None else (f"cache.{name}", name)
            raise RopeShapeError(f"{missing}: is None where {given} is given; a call stores exactly what it is given")
        if x is None or paged is None:
            if scale is not None:
                raise RopeShapeError(f"{name}_scale: given without a cache of {name}")
            continue
        _check_cache(f"cache.{name}", x, paged, q, layout)
        _check_scale(f"{name}_scale", scale, paged, q)
    if cache.k is not None and cache.v is not None and cache.k.shape[:2] != cache.v.shape[:2]:
        raise RopeShapeError(
            f"cache.v: shape {tuple(cache.v.shape)}, must have the pages and page size of cache.k's "
            f"{tuple(cache.k.shape)}"
        )


def _check_cache(name: str, x: Tensor, paged: Tensor, q: Tensor, layout: str) -> None:
    heads, width = x.shape[LAYOUTS[layout].heads], x.shape[-1]
    shape = tuple(paged.shape)
    if len(shape) != 4 or shape[2:] != (heads, width):
        is_hnd = len(shape) == 4 and (shape[1], shape[3]) == (heads, width)
        hint = "; give one of (pages, kv_heads, page_size, width) as .transpose(1, 2)" if is_hnd else ""
        raise RopeShapeError(f"{name}: shape {shape}, must be (pages, page_size, {heads}, {width}){hint}")
    if 0 in shape[:2]:
        raise RopeShapeError(f"{name}: shape {shape}, has no slot")
    if paged.dtype not in (q.dtype, *_QUANTISED):
        raise RopeShapeError(
            f"{name}: dtype {paged.dtype}, allowed are q's {q.dtype}, float8_e4m3fn, float8_e5m2 and int8"
        )
    if paged.device != q.device:
        raise RopeShapeError(f"{name}: on {paged.device}, must be on q's {q.device}")
    if paged.stride(-1) != 1:
        raise RopeShapeError(f"{name}: last stride is {paged.stride(-1)}, must be 1")


def _check_scale(name: str, scale: Tensor | None, paged: Tensor, q: Tensor) -> None:
    is_quantised = paged.dtype in _QUANTISED
    if scale is None:
        if is_quantised:
            raise RopeShapeError(f"{name}: missing; a cache of {paged.dtype} needs one (value = stored * scale)")
        return
    if not is_quantised:
        raise RopeShapeError(f"{name}: given with a cache of {paged.dtype}, which holds values as they are")
    heads = paged.shape[2]
    if tuple(scale.shape) not in ((), (1,), (heads,)) or scale.dtype != torch.float32:
        raise RopeShapeError(f"{name}: {tuple(scale.shape)} {scale.dtype}, must be () or ({heads},) float32")
    if scale.device != q.device:
        raise RopeShapeError(f"{name}: on {scale.device}, must be on q's {q.device}")


def flat_scale(scale: Tensor | None) -> Tensor | None:
    """The scale as (1,) or (kv_heads,), contiguous."""
    return None if scale is None else scale.reshape(-1).contiguous()


def checked_slots(cache: KVCache, q: Tensor, layout: str, tokens: int) -> Tensor:
    """The slots, flat; :class:`RopeShapeError` unless they fit q's tokens, and on a CPU the cache."""
    slots, axes = cache.slots, LAYOUTS[layout]
    if slots.dtype not in _SLOT_DTYPES:
        raise RopeShapeError(f"slots: dtype {slots.dtype}, allowed are int32, int64")
    if slots.device != q.device:
        raise RopeShapeError(f"slots: on {slots.device}, must be on q's {q.device}")
    grid = None if axes.batch is None else (q.shape[axes.batch], q.shape[axes.tokens])
    if not (slots.dim() == 1 and slots.shape[0] <= tokens) and tuple(slots.shape) != grid:
        forms = f"({tokens},) or fewer" + ("" if grid is None else f", and {grid}")
        shape = tuple(slots.shape)
        raise RopeShapeError(f"slots: shape {shape}, allowed for q {tuple(q.shape)} in {layout} are {forms}")
    flat = slots.reshape(-1)
    if flat.is_cpu and has_memory(flat) and not torch.compiler.is_compiling() and flat.numel():
        paged = cache.k if cache.k is not None else cache.v
        assert paged is not None
        last = int(flat.max())
        if last >= paged.shape[0] * paged.shape[1]:
            raise RopeShapeError(
                f"slots: got {last}, the cache has {paged.shape[0] * paged.shape[1]} "
                f"({paged.shape[0]} pages of {paged.shape[1]})"
            )
    return flat


def checked_outputs(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """(q_out, k_out) of ``out``; k_out may be ``None``, where k goes to the cache alone."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise RopeShapeError("out: must be (q_out, k_out), where k_out may be None")
    q_out, k_out = out
    if k_out is not None and k is None:
        raise RopeShapeError("out: k_out is given without k")
    given = k if k_out is not None else None
    checks.check_outputs(q, given, (q_out, k_out))
    return q_out, k_out


def check_memory(
    q: Tensor, k: Tensor | None, v: Tensor | None, q_out: Tensor, k_out: Tensor | None, cache: KVCache
) -> None:
    """Raise :class:`RopeShapeError` if an element would be written twice, or overwritten before it is read."""
    if torch.compiler.is_compiling() or not has_memory(q):
        return
    written = {"q" if q_out is q else "out: q_out": q_out, "k" if k_out is k else "out: k_out": k_out}
    written |= {"cache.k": cache.k, "cache.v": cache.v}
    names = [name for name, x in written.items() if x is not None]
    for i, name in enumerate(names):
        y = written[name]
        assert y is not None
        if writes_twice(y):
            raise RopeShapeError(f"{name}: overlaps itself (strides {y.stride()}), cannot be written")
        for other in names[:i]:
            if _overlap(y, written[other]):
                raise RopeShapeError(f"{name}: overlaps the memory of {other}; both are written")
        for read, x in (("q", q), ("k", k), ("v", v)):
            is_same = x is y or (x is not None and x.data_ptr() == y.data_ptr() and x.stride() == y.stride())
            if x is not None and not (is_same and name in (read, f"out: {read}_out")) and _overlap(y, x):
                raise RopeShapeError(f"{name}: overlaps the memory of {read}, which the call reads")


def _overlap(x: Tensor, y: Tensor | None) -> bool:
    return y is not None and shares_memory(x, y)
