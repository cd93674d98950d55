"""The Triton backend: launches :mod:`.kernels` for a checked call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.rotation import Rotation
from ...core.spec import Spec
from ..inputs import Append, Inputs, Norms
from ..storing import rotate_then_store
from . import kernels
from .append_launch import append_in_one_launch
from .arguments import Pair, Strides, ladder_of, launches_of, layout_of, pointers, position_strides, prepared, present
from .compiled import ADDRESSES, Launched, compiled_launch
from .constants import device_tensors
from .launching import OPTIONS, device_of, first_in_capture
from .norm_launch import rotate_norm, rotate_norm_backward

__all__ = [
    "prepare",
    "rotate",
    "rotate_append",
    "rotate_cached",
    "rotate_norm",
    "rotate_norm_backward",
    "rotate_table",
    "unavailable",
]


def unavailable(device: torch.device | None = None) -> str | None:
    """Why the kernels cannot run on ``device`` (``None``: on any device here), or ``None`` if they can."""
    if device is not None and device.type != "cuda":
        return f"the Triton kernels run on cuda tensors, not on {device.type}"
    return None if torch.cuda.is_available() else "no CUDA device is available"


def prepare(spec: Spec, device: torch.device) -> None:
    """Put ``spec``'s maps and tables on ``device``, which cannot be done while a CUDA graph is captured."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    ladder = bool(ladder_of(spec))
    for phase in ("float32",) if spec.rotation.phase == "float32" else ("fixed", "float"):
        device_tensors(spec, phase, ladder, device)


def rotate(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec
) -> Launched | None:
    """Rotate (batch, tokens, heads, head_dim) views in one launch; the last stride is 1, the others are free.

    ``q_out`` and ``k_out`` may be ``q`` and ``k``. fp32, fp16 or bf16; computed in fp32, rounded once.

    Returns:
        What repeats the launches, if they can be repeated without Python.
    """
    pairs = present(q, k, q_out, k_out)
    if not spec.rotation.num_pairs:
        _copy(pairs)
        return None
    return _all([_rotate(group, q.shape[0], q.shape[1], inputs, spec) for group in launches_of(pairs)])


def rotate_append(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms,
    append: Append,
) -> None:  # fmt: skip
    """Norm and rotate q and k and store k and v in one launch; see :func:`..reference.rotate_append`.

    A call for which there is no such kernel stores by torch's operations.
    """
    if not append_in_one_launch(q, k, q_out, k_out, inputs, spec, norms, append):
        rotate_then_store(rotate, rotate_norm, q, k, q_out, k_out, inputs, spec, norms, append)


def rotate_table(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool,
) -> Launched | None:  # fmt: skip
    """The same by a table: ``cos``, ``sin`` (batch or 1, tokens, rotary_dim), in the order of the output."""
    pairs = present(q, k, q_out, k_out)
    if not rotation.num_pairs:
        _copy(pairs)
        return None
    batch, tokens = q.shape[:2]
    given = _GivenTable(cos, sin, [position_strides(table.unsqueeze(0)) for table in (cos, sin)])
    return _all([_rotate_table(group, batch, tokens, given, rotation, inverse) for group in launches_of(pairs)])


def rotate_cached(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    positions: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation,
) -> Launched | None:  # fmt: skip
    """The same by rows of a table; see :func:`..reference.rotate_cached`."""
    batch, tokens = q.shape[:2]
    strides: list[Strides] = [(0, cos.stride(0)), (0, sin.stride(0)), position_strides(positions.unsqueeze(0))]
    given = _GivenTable(cos, sin, strides, positions)
    groups = launches_of(present(q, k, q_out, k_out))
    return _all([_rotate_table(group, batch, tokens, given, rotation, False) for group in groups])


def _all(made: list[Launched | None]) -> Launched | None:
    """The launches of all groups, if each can be repeated."""
    launched = [each for each in made if each is not None]
    if not launched or len(launched) < len(made):
        return None
    return Launched(
        tuple(launch for each in launched for launch in each.launches),
        tuple(needed for each in launched for needed in each.needed),
    )


def _copy(pairs: list[Pair | None]) -> None:
    for x, y in filter(None, pairs):
        y.copy_(x)


def _rotate(pairs: list[Pair | None], batch: int, tokens: int, inputs: Inputs, spec: Spec) -> Launched | None:
    x, arguments, tile, angle, grid, tensors, vectors, dense = prepared(pairs, batch, tokens, inputs, spec)
    with device_of(x), first_in_capture():
        kernel = kernels.rotate_kernel[grid](*arguments, ANGLE=angle, TILE=tile, num_warps=tile.WARPS, **OPTIONS)
    if not x.is_cuda or any(a is not b for a, b in zip(vectors, dense, strict=True)):
        return None
    return _launched(kernel, grid, arguments, dict(enumerate(ADDRESSES[:9])), tensors)


class _GivenTable(NamedTuple):
    """A caller's table, whose rows are those of the tokens, or of ``positions``.

    Attributes:
        cos, sin: (batch or 1, tokens, rotary_dim), or with positions (rows, pairs).
        strides: (batch, token) of cos and sin, and of positions if they are given.
        positions: (batch or 1, tokens), or ``None``.
    """

    cos: Tensor
    sin: Tensor
    strides: list[Strides]
    positions: Tensor | None = None


def _rotate_table(
    pairs: list[Pair | None], batch: int, tokens: int, table: _GivenTable, rotation: Rotation, inverse: bool
) -> Launched | None:
    cos, sin, positions = table.cos, table.sin, table.positions
    by_pair = positions is not None
    # Only positions decide whether batch and tokens are one axis: rows of a table for each position have no order.
    others = table.strides[2:] if by_pair else table.strides
    count, tile, strides = layout_of(pairs, others, batch, tokens, False, rotation, inverse, True, one_head=True)
    of_table = [*table.strides[:2], strides.pop()] if by_pair else [*strides[4:], (0, 0)]
    x = next(pair for pair in pairs if pair is not None)[0]
    arguments = (
        *pointers(pairs), cos, sin, positions, count, tokens, 1.0 / tokens, cos.shape[0],
        *(s for each in [*strides[:4], *of_table] for s in each), cos.stride(-1), sin.stride(-1),
    )  # fmt: skip
    grid = (-(-count // tile.TOKENS), tile.CHUNKS)
    with device_of(x), first_in_capture():
        kernel = kernels.rotate_table_kernel[grid](
            *arguments, INVERSE=inverse, BY_PAIR=by_pair, TILE=tile, num_warps=tile.WARPS, **OPTIONS
        )
    if not x.is_cuda:
        return None
    return _launched(kernel, grid, arguments, dict(enumerate((*ADDRESSES[:4], "cos", "sin", "positions"))), ())


def _launched(
    kernel: object, grid: tuple[int, int], arguments: tuple[object, ...], tensors: dict[int, str],
    needed: tuple[object, ...],
) -> Launched | None:  # fmt: skip
    launch = compiled_launch(kernel, grid, arguments, tensors)
    return None if launch is None else Launched((launch,), (kernel, *needed))
