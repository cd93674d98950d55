"""The checks of a call's arguments. All of them run before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS, Layout
from ..errors import RopeShapeError
from ..ops.memory import are_clearly_apart
from .overlap import has_memory, shares_memory, writes_twice
from .sizes import is_known, is_possible, same

__all__ = [
    "check_beside",
    "check_config",
    "check_heads",
    "check_layout",
    "check_outputs",
    "check_outputs_apart",
    "check_position_rows",
    "check_positions",
    "check_qk",
    "index_vector",
]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TABLE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Allowed of a caller's cos and sin."""
_INDEX_DTYPES = (torch.int64, torch.int32)
_POSITION_DTYPES = (*_INDEX_DTYPES, torch.float32, torch.float64)
_COUNTS_TO = {torch.float16: 2048, torch.bfloat16: 256}
"""The position up to which a 16-bit dtype has every integer."""


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def check_tensor(name: str, x: object) -> None:
    """Raise :class:`RopeShapeError` unless ``x`` is a tensor."""
    if not isinstance(x, Tensor):
        raise RopeShapeError(f"{name}: got {type(x).__name__}, a tensor is needed")


def check_flag(name: str, flag: object) -> None:
    """Raise :class:`RopeShapeError` unless ``flag`` is a bool: other truthy values are mistakes."""
    if not isinstance(flag, bool):
        raise RopeShapeError(f"{name}: got {flag!r}, allowed are True and False")


def check_config(cfg: RopeConfig, layout: str) -> None:
    """Raise TypeError unless ``cfg`` is a :class:`RopeConfig`, :class:`RopeShapeError` if ``layout`` is unknown."""
    if not isinstance(cfg, RopeConfig):
        raise TypeError(f"cfg: got {type(cfg).__name__}, a RopeConfig is needed (RopeConfig.from_hf reads other forms)")
    check_layout(layout)


def check_layout(layout: str) -> None:
    """Raise :class:`RopeShapeError` if ``layout`` is unknown."""
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise RopeShapeError(f"layout: got {layout!r}, allowed are {', '.join(LAYOUTS)}")


def check_qk(q: Tensor, k: Tensor | None, head_dim: int, layout: str) -> None:
    """Raise :class:`RopeShapeError` unless q and k fit ``head_dim``, ``layout`` and each other."""
    check_heads("q", q, head_dim, layout)
    if k is not None:
        check_beside("k", k, head_dim, q, layout)


def check_beside(name: str, x: Tensor, head_dim: int, q: Tensor, layout: str) -> None:
    """Raise :class:`RopeShapeError` unless ``x``, k or v, fits ``head_dim``, ``layout`` and q."""
    batch, tokens = LAYOUTS[layout].batch, LAYOUTS[layout].tokens
    check_heads(name, x, head_dim, layout)
    if x.dtype != q.dtype:
        raise RopeShapeError(f"{name}: dtype {x.dtype}, must be q's {q.dtype}")
    if x.device != q.device:
        raise RopeShapeError(f"{name}: on {x.device}, must be on q's {q.device}")
    if not same(x.shape[tokens], q.shape[tokens]) or (batch is not None and not same(x.shape[batch], q.shape[batch])):
        hint = _other_layout(layout, lambda axes: x.shape[axes.tokens] == q.shape[axes.tokens])
        raise RopeShapeError(
            f"{name}: shape {tuple(x.shape)} in layout {layout}, must have batch and tokens of q's "
            f"{tuple(q.shape)}{hint}"
        )


def _other_layout(layout: str, fits: Callable[[Layout], bool]) -> str:
    """A hint if the sizes fit the other layout with a batch: transformers' tensors have heads before tokens."""
    other = {"bshd": "bhsd", "bhsd": "bshd"}.get(layout)
    if other is None or torch.compiler.is_compiling() or not fits(LAYOUTS[other]):
        return ""
    order = "(batch, heads, seq, head_dim)" if other == "bhsd" else "(batch, seq, heads, head_dim)"
    return f"; {order} tensors need layout={other!r}"


def check_heads(name: str, x: Tensor, head_dim: int, layout: str) -> None:
    """Raise :class:`RopeShapeError` unless ``x`` is a tensor of heads in ``layout``."""
    check_tensor(name, x)
    rank = LAYOUTS[layout].rank
    if x.dim() != rank:
        raise RopeShapeError(f"{name}: shape {tuple(x.shape)} has {x.dim()} dimensions, layout {layout} has {rank}")
    if x.shape[-1] != head_dim:
        raise RopeShapeError(f"{name}: last dimension is {x.shape[-1]}, must be the config's head_dim {head_dim}")
    if x.dtype not in _DTYPES:
        raise RopeShapeError(f"{name}: dtype {x.dtype}, allowed are {_names(_DTYPES)}")
    if x.stride(-1) != 1 and x.numel() != 0:
        raise RopeShapeError(f"{name}: last stride is {x.stride(-1)}, must be 1 (call .contiguous())")


def check_positions(positions: Tensor, q: Tensor, layout: str, num_axes: int) -> None:
    """Raise :class:`RopeShapeError` unless ``positions`` has a position for every token of q."""
    check_tensor("positions", positions)
    if positions.dtype not in _POSITION_DTYPES:
        limit = _COUNTS_TO.get(positions.dtype)
        why = f", which has not every integer above {limit}; make positions in another dtype" if limit else ""
        raise RopeShapeError(f"positions: dtype {positions.dtype}, allowed are {_names(_POSITION_DTYPES)}{why}")
    _check_position_shape(positions, q, layout, num_axes)


def check_position_rows(positions: Tensor, q: Tensor, layout: str, num_axes: int) -> None:
    """:func:`check_positions` for those that name the rows of a table, with all axes given if there are several."""
    check_tensor("positions", positions)
    if positions.dtype not in _INDEX_DTYPES:
        raise RopeShapeError(f"positions: dtype {positions.dtype}, allowed are {_names(_INDEX_DTYPES)}")
    _check_position_shape(positions, q, layout, num_axes)
    if num_axes > 1 and positions.dim() < (2 if LAYOUTS[layout].batch is None else 3):
        raise RopeShapeError(f"positions: shape {tuple(positions.shape)}, must have {num_axes} axes in front")


def _check_position_shape(positions: Tensor, q: Tensor, layout: str, num_axes: int) -> None:
    if positions.device != q.device:
        raise RopeShapeError(f"positions: on {positions.device}, must be on q's {q.device}")
    axes = LAYOUTS[layout]
    tokens = q.shape[axes.tokens]
    shape = tuple(positions.shape)
    if axes.batch is None:
        allowed: list[tuple[int, ...]] = [(tokens,)] + ([(num_axes, tokens)] if num_axes > 1 else [])
    else:
        batch = q.shape[axes.batch]
        allowed = [(tokens,), (1, tokens), (batch, tokens)]
        if num_axes > 1:
            allowed += [(num_axes, 1, tokens), (num_axes, batch, tokens)]
    if not _has_shape(shape, allowed):
        forms = ", ".join(map(str, dict.fromkeys(allowed)))
        hint = _other_layout(layout, lambda axes: shape[-1:] == (q.shape[axes.tokens],))
        if num_axes > 1 and len(shape) >= 2 and shape[-2:] == (tokens, num_axes):
            hint = "; axes come first: positions.movedim(-1, 0)"
        raise RopeShapeError(f"positions: shape {shape}, allowed for q {tuple(q.shape)} in {layout} are {forms}{hint}")


def _has_shape(shape: tuple[int, ...], allowed: Sequence[tuple[int, ...]]) -> bool:
    """Whether ``shape`` is one of ``allowed``; if sizes are known only at run time, whether it can be the last one."""
    forms = [form for form in allowed if len(form) == len(shape)]
    if any(all(is_known(x == y) for x, y in zip(shape, form, strict=True)) for form in forms):
        return True
    return any(all(same(x, y) for x, y in zip(shape, form, strict=True)) for form in reversed(forms))


def index_vector(name: str, value: int | Tensor, q: Tensor, counts: tuple[int, ...]) -> Tensor:
    """``value`` as an int64 vector on q's device, with one entry or a number of entries in ``counts``.

    Raises:
        RopeShapeError: not an int, nor an int32 or int64 tensor of such a shape on q's device.
    """
    if isinstance(value, Tensor):
        if value.dtype not in _INDEX_DTYPES:
            raise RopeShapeError(f"{name}: dtype {value.dtype}, allowed are {_names(_INDEX_DTYPES)}")
        if value.device != q.device:
            raise RopeShapeError(f"{name}: on {value.device}, must be on q's {q.device}")
        if value.dim() > 1 or (value.dim() == 1 and not _has_shape(tuple(value.shape), [(n,) for n in (1, *counts)])):
            forms = ", ".join(f"({n},)" for n in dict.fromkeys((1, *counts)))
            raise RopeShapeError(f"{name}: shape {tuple(value.shape)}, allowed are an int, (), {forms}")
        return value.reshape(-1).to(torch.int64)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise RopeShapeError(f"{name}: got {value!r}, allowed are an int and an int32 or int64 tensor")
    if not (is_possible(value >= -(1 << 63)) and is_possible(value < 1 << 63)):
        raise RopeShapeError(f"{name}: got {value}, beyond int64")
    return torch.full((1,), value, dtype=torch.int64, device=q.device)


def check_cu_seqlens(cu_seqlens: Tensor, q: Tensor, layout: str) -> None:
    """Raise :class:`RopeShapeError` unless ``cu_seqlens`` can bound packed sequences of q."""
    if layout != "thd":
        raise RopeShapeError(f"cu_seqlens: given with layout {layout}, packed sequences need layout thd")
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in _INDEX_DTYPES:
        raise RopeShapeError(f"cu_seqlens: dtype {cu_seqlens.dtype}, allowed are {_names(_INDEX_DTYPES)}")
    if cu_seqlens.dim() != 1 or not is_possible(cu_seqlens.shape[0] >= 2):
        raise RopeShapeError(f"cu_seqlens: shape {tuple(cu_seqlens.shape)}, must be (sequences + 1,)")
    if cu_seqlens.device != q.device:
        raise RopeShapeError(f"cu_seqlens: on {cu_seqlens.device}, must be on q's {q.device}")
    if cu_seqlens.is_cpu and type(cu_seqlens) is Tensor and not torch.compiler.is_compiling():
        _check_bounds(cu_seqlens, q.shape[0])


def _check_bounds(cu_seqlens: Tensor, tokens: int) -> None:
    """The values, where reading them costs nothing: a device would have to be waited for."""
    if torch._C._are_functorch_transforms_active():
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] > tokens or any(last < first for first, last in pairwise(bounds)):
        shown = bounds if len(bounds) <= 8 else f"{len(bounds)} bounds from {bounds[0]} to {bounds[-1]}"
        raise RopeShapeError(f"cu_seqlens: got {shown}, must rise from 0 to at most q's {tokens} tokens")


def check_outputs(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None]) -> None:
    """Raise :class:`RopeShapeError` unless ``out`` has the shapes, dtypes and device of the inputs."""
    if not isinstance(out, (tuple, list)) or len(out) != 2 or (out[1] is None) != (k is None):
        raise RopeShapeError("out: must be (q_out, k_out), with k_out None exactly where k is None")
    for name, x, y in _with_outputs(q, k, out):
        check_tensor(f"out: {name}_out", y)
        if y.shape != x.shape or y.dtype != x.dtype or y.device != x.device:
            raise RopeShapeError(
                f"out: {name}_out is {tuple(y.shape)} {y.dtype} on {y.device}, "
                f"must be like {name}: {tuple(x.shape)} {x.dtype} on {x.device}"
            )
        if y.stride(-1) != 1:
            raise RopeShapeError(f"out: {name}_out has last stride {y.stride(-1)}, must be 1")


def check_outputs_apart(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None]) -> None:
    """Raise :class:`RopeShapeError` if an output overlaps itself, the other output, or an input without being it."""
    if torch.compiler.is_compiling() or not has_memory(q) or are_clearly_apart(q, k, *out):
        return
    check_in_place(*out, ("out: q_out", "k_out"))
    for name, x, y in _with_outputs(q, k, out):
        for other in (q, k):
            same = other is x and y.data_ptr() == x.data_ptr() and y.stride() == x.stride()
            if other is not None and not same and shares_memory(y, other):
                raise RopeShapeError(f"out: {name}_out overlaps an input's memory; it may be the input itself or apart")


def _with_outputs(
    q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, input, output) of q and, if there is one, k."""
    yield "q", q, out[0]
    if k is not None and out[1] is not None:
        yield "k", k, out[1]


def check_in_place(q: Tensor, k: Tensor | None, names: tuple[str, str] = ("q", "k")) -> None:
    """Raise :class:`RopeShapeError` if an element would be written twice. Reads addresses, so not for traced code."""
    if type(q) is not Tensor and not has_memory(q):
        return
    if q.is_contiguous() and (k is None or k.is_contiguous()):  # a cheap test for the usual case
        if k is None:
            return
        start_q, start_k = q.data_ptr(), k.data_ptr()
        if start_q + q.nbytes <= start_k if start_q < start_k else start_k + k.nbytes <= start_q:
            return
    if q.is_meta:
        return
    for name, x in zip(names, (q, k), strict=True):
        if x is not None and writes_twice(x):
            raise RopeShapeError(f"{name}: overlaps itself (strides {x.stride()}), cannot be written in place")
    if k is not None and shares_memory(q, k):
        raise RopeShapeError(f"{names[0]}: overlaps the memory of {names[1]}, cannot both be written in place")
