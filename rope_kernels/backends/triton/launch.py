"""The Triton backend: launches :mod:`.kernels` for a checked call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache, lru_cache

import torch
from torch import Tensor

from ...core.rotation import Rotation
from ...core.spec import Spec
from ..inputs import Inputs
from . import kernels
from .compiled import ADDRESSES, Launched, compiled_launch
from .constants import device_tensors, ramp_of, scalars
from .plan import Angle, Memory, Tile, alignment, launch_tile, power_of_2

__all__ = ["prepare", "rotate", "rotate_table", "unavailable"]

Strides = tuple[int, ...]
Pair = tuple[Tensor, Tensor]
"""A tensor and its output."""

_OPTIONS = {"enable_fp_fusion": True}
"""Products and sums become one instruction. From Triton 3.10 on that is no longer the default."""


def unavailable(device: torch.device | None = None) -> str | None:
    """Why the kernels cannot run on ``device`` (``None``: on any device here), or ``None`` if they can."""
    if device is not None and device.type != "cuda":
        return f"the Triton kernels run on cuda tensors, not on {device.type}"
    return None if torch.cuda.is_available() else "no CUDA device is available"


def prepare(spec: Spec, device: torch.device) -> None:
    """Put ``spec``'s maps and tables on ``device``, which cannot be done while a CUDA graph is captured."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    ladder = bool(_ladder(spec))
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
    pairs = _present(q, k, q_out, k_out)
    if not spec.rotation.num_pairs:
        _copy(pairs)
        return None
    return _all([_rotate(group, q.shape[0], q.shape[1], inputs, spec) for group in _launches(pairs)])


def rotate_table(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool,
) -> Launched | None:  # fmt: skip
    """The same by a table: ``cos``, ``sin`` (batch or 1, tokens, rotary_dim), in the order of the output."""
    pairs = _present(q, k, q_out, k_out)
    if not rotation.num_pairs:
        _copy(pairs)
        return None
    batch, tokens = q.shape[:2]
    return _all([_rotate_table(group, batch, tokens, cos, sin, rotation, inverse) for group in _launches(pairs)])


def _all(made: list[Launched | None]) -> Launched | None:
    """The launches of all groups, if each can be repeated."""
    launched = [each for each in made if each is not None]
    if not launched or len(launched) < len(made):
        return None
    return Launched(
        tuple(launch for each in launched for launch in each.launches),
        tuple(needed for each in launched for needed in each.needed),
    )


def _present(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None) -> list[Pair | None]:
    return [(x, y) if x is not None and y is not None and x.numel() else None for x, y in ((q, q_out), (k, k_out))]


def _copy(pairs: list[Pair | None]) -> None:
    for x, y in filter(None, pairs):
        y.copy_(x)


def _in_place(pair: Pair) -> bool:
    x, y = pair
    return y is x or (y.data_ptr() == x.data_ptr() and y.stride() == x.stride())


def _launches(pairs: list[Pair | None]) -> list[list[Pair | None]]:
    """One launch for q and k; two if only one of them is rotated in place."""
    present = [pair for pair in pairs if pair is not None]
    if len({_in_place(pair) for pair in present}) == 2:
        return [[pairs[0], None], [None, pairs[1]]]
    return [pairs] if present else []


def _rotate(pairs: list[Pair | None], batch: int, tokens: int, inputs: Inputs, spec: Spec) -> Launched | None:
    positions, seq_len, from_seq_len = inputs.positions, inputs.seq_len, inputs.from_seq_len
    angle = _angle(
        spec,
        None if positions is None else (positions.is_floating_point(), positions.shape[0] > 1),
        tuple(_count(t) for t in (inputs.offset, seq_len, from_seq_len)),
        _search_steps(inputs.cu_seqlens),
        inputs.inverse,
        inputs.unscaled,
    )
    others = [] if positions is None else [_position_strides(positions)]
    by_group = positions is None or 2 in (angle.OFFSETS, angle.LENGTHS, angle.FROM_LENGTHS)
    count, tile, strides = _layout(
        pairs, others, batch, tokens, by_group, spec.rotation, inputs.inverse, angle.MAPPED or bool(angle.TABLE_ROWS)
    )
    x = next(pair for pair in pairs if pair is not None)[0]
    pair_map, table = device_tensors(spec, angle.PHASE, bool(angle.LADDER), x.device)
    position_strides = strides.pop() if others else (0, 0)
    frequency = spec.frequency
    vectors = (inputs.offset, seq_len, from_seq_len, inputs.cu_seqlens)
    dense = tuple(map(_dense, vectors))
    arguments = (
        *_pointers(pairs), positions, *dense, pair_map, table,
        count, tokens, 1.0 / tokens, 0 if inputs.cu_seqlens is None else inputs.cu_seqlens.shape[0] - 1,
        *(s for each in strides for s in each),
        0 if positions is None else positions.stride(0), *position_strides,
        *scalars(frequency, angle.PHASE),
        frequency.attention_scaling, frequency.long_attention_scaling or 0.0,
    )  # fmt: skip
    grid = (-(-count // tile.TOKENS), tile.CHUNKS)
    with _device_of(x), _first_in_capture():
        kernel = kernels.rotate_kernel[grid](*arguments, ANGLE=angle, TILE=tile, num_warps=tile.WARPS, **_OPTIONS)
    if not x.is_cuda or any(a is not b for a, b in zip(vectors, dense, strict=True)):
        return None
    return _launched(kernel, grid, arguments, dict(enumerate(ADDRESSES[:9])), (pair_map, table))


def _rotate_table(
    pairs: list[Pair | None], batch: int, tokens: int, cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool
) -> Launched | None:
    others = [_position_strides(table.unsqueeze(0)) for table in (cos, sin)]
    count, tile, strides = _layout(pairs, others, batch, tokens, False, rotation, inverse, True, one_head=True)
    x = next(pair for pair in pairs if pair is not None)[0]
    arguments = (
        *_pointers(pairs), cos, sin, count, tokens, 1.0 / tokens,
        *(s for each in strides for s in each), cos.stride(2), sin.stride(2),
    )  # fmt: skip
    grid = (-(-count // tile.TOKENS), tile.CHUNKS)
    with _device_of(x), _first_in_capture():
        kernel = kernels.rotate_table_kernel[grid](
            *arguments, INVERSE=inverse, TILE=tile, num_warps=tile.WARPS, **_OPTIONS
        )
    if not x.is_cuda:
        return None
    return _launched(kernel, grid, arguments, dict(enumerate((*ADDRESSES[:4], "cos", "sin"))), ())


def _launched(
    kernel: object, grid: tuple[int, int], arguments: tuple[object, ...], tensors: dict[int, str],
    needed: tuple[object, ...],
) -> Launched | None:  # fmt: skip
    launch = compiled_launch(kernel, grid, arguments, tensors)
    return None if launch is None else Launched((launch,), (kernel, *needed))


def _device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@contextlib.contextmanager
def _first_in_capture() -> Iterator[None]:
    """Words the error of a kernel that is first met while a CUDA graph is captured."""
    try:
        yield
    except RuntimeError as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "rope_kernels: the kernel of this call cannot be loaded while a CUDA graph is captured; call "
                f"rope_kernels.warm_up, or make the call once, before capturing ({error})"
            ) from None
        raise


def _pointers(pairs: list[Pair | None]) -> list[Tensor | None]:
    return [None if pair is None else pair[side] for side in (0, 1) for pair in pairs]


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _count(vector: Tensor | None) -> int:
    """0 none, 1 one for all tokens, 2 one per group."""
    return 0 if vector is None else min(vector.numel(), 1) + (vector.numel() > 1)


def _search_steps(cu_seqlens: Tensor | None) -> int:
    """Steps that bisect all sequences, a multiple of four, so that few numbers of sequences need another kernel."""
    return 0 if cu_seqlens is None else max(1, -(-(cu_seqlens.shape[0] - 1).bit_length() // 4)) * 4


def _position_strides(positions: Tensor) -> Strides:
    """(batch, token) strides of (axes, batch or 1, tokens)."""
    return (positions.stride(1) if positions.shape[1] > 1 else 0), positions.stride(2)


def _layout(
    pairs: list[Pair | None], others: list[Strides], batch: int, tokens: int, by_group: bool, rotation: Rotation,
    inverse: bool, loads_per_pair: bool, one_head: bool = False,
) -> tuple[int, Tile, list[Strides]]:  # fmt: skip
    """(tokens, tile, strides of q, k, their outputs and ``others``); batch and tokens become one axis if they can."""
    sides = [None if pair is None else pair[side] for side in (0, 1) for pair in pairs]
    strides: list[Strides] = [(0, 0, 0) if x is None else x.stride()[:3] for x in sides] + others
    batched = batch > 1
    if batched and not by_group and all(s[0] == tokens * s[1] for s in strides):
        batched = False
    elif batched and not by_group and tokens == 1:
        batched, strides = False, [(0, s[0], *s[2:]) for s in strides]
    heads = [0 if pair is None else pair[0].shape[2] for pair in pairs]
    used = [x for x in sides if x is not None]
    size, width = used[0].element_size(), used[0].shape[3]
    dense_heads = all(x.stride(2) == width or x.shape[2] == 1 for x in used)
    offsets = [x.data_ptr() for x in used]
    for x, s in zip(sides, strides, strict=False):
        if x is not None:
            sizes = (batch if batched else 1, tokens if batched else batch * tokens, x.shape[2])
            offsets += [size * stride for stride, n in zip(s, sizes, strict=True) if n > 1]
    first = next(pair for pair in pairs if pair is not None)
    memory = Memory(size, alignment(size, offsets, rotation), dense_heads, _in_place(first), batched)
    tile = launch_tile(
        batch * tokens, *heads, rotation, memory, multiprocessors=_multiprocessors(used[0].device),
        inverse=inverse, loads_per_pair=loads_per_pair, one_head=one_head,
    )  # fmt: skip
    return batch * tokens, tile, strides


@cache
def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; AMD calls them compute units. Tensors of the CPU, which only stand-ins for a GPU rotate, have 48."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 48


@lru_cache(maxsize=4096)
def _angle(
    spec: Spec, positions: tuple[bool, bool] | None, counts: tuple[int, ...], steps: int, inverse: bool, unscaled: bool
) -> Angle:
    """What the kernel must compute. ``positions``: (floating, several axes); ``counts``: of offset and the lengths."""
    params, rotation = spec.frequency, spec.rotation
    offsets, lengths, from_lengths = counts
    floating, several = positions or (False, False)
    phase = "float32" if rotation.phase == "float32" else "float" if floating else "fixed"
    ladder = _ladder(spec)
    axes = rotation.num_axes if several else 1
    indexed = ladder > 0 and rotation.freq_index not in ((), tuple(range(rotation.num_pairs)))
    lengths = lengths if params.depends_on_length else 0
    two_scalings = bool(lengths) and params.long_attention_scaling is not None
    scaled = two_scalings or params.attention_scaling != 1.0
    return Angle(
        PHASE=phase,
        LADDER=ladder,
        TABLE_ROWS=min(len(params.multipliers), 2 if lengths and params.switch_length else 1),
        TABLE_SIZE=power_of_2(rotation.num_pairs),
        RAMP=ramp_of(params),
        GROWS=bool(lengths) and params.dynamic_factor > 0,
        WRAPPED=phase == "fixed" and (bool(params.multipliers) or params.theta < 1.0 or params.factor < 1.0),
        ROTATED=params.num_rotated if params.num_rotated < ladder else None,
        AXES=axes,
        MAPPED=axes > 1 or indexed,
        MAPPED_INDEX=indexed,
        COUNTED=positions is None,
        OFFSETS=offsets if positions is None else 0,
        LENGTHS=lengths,
        FROM_LENGTHS=from_lengths,
        SEARCH_STEPS=steps,
        SWITCHED=bool(lengths) and params.switch_length > 0,
        SCALINGS=0 if unscaled or not scaled else 1 + two_scalings,
        ROUNDED=rotation.table_dtype,
        INVERSE=inverse,
    )


def _ladder(spec: Spec) -> int:
    """Entries of the ladder that the kernel computes; none with a table, unless theta grows."""
    params = spec.frequency
    return 0 if params.multipliers and not params.dynamic_factor else max(spec.rotation.index) + 1
