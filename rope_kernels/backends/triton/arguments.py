"""What a launch of the Triton kernels is given: arguments, strides, and the constants that it is compiled for."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.rotation import Rotation
from ...core.spec import Spec
from ..inputs import Inputs
from .constants import device_tensors, ramp_of, scalars
from .plan import Angle, Memory, Tile, alignment, launch_tile, power_of_2

__all__ = ["Beside", "Pair", "Prepared", "Strides", "is_in_place", "ladder_of", "launches_of", "layout_of",
           "multiprocessors_of", "pointers", "position_strides", "prepared", "present"]  # fmt: skip

_SIDES = (0, 1, 2)
Strides = tuple[int, ...]
Pair = tuple[Tensor, ...]
"""A tensor and its output; in a backward call also the gradient of what the forward call returned."""


class Beside(NamedTuple):
    """What a launch reads and writes besides q, k and their outputs.

    Attributes:
        strides: (batch, token, head) of a third tensor that is read; zeros without one.
        aligned: bytes that the rows that are written are aligned to, as many as their elements would be in q's dtype.
    """

    strides: Strides
    aligned: int


Prepared = tuple[
    Tensor, tuple[object, ...], Tile, Angle, tuple[int, int], tuple[Tensor | None, ...], tuple[Tensor | None, ...],
    tuple[Tensor | None, ...],
]  # fmt: skip
"""A launch with angles: (q or k, arguments of the kernel up to the last that all kernels with angles have, tile, angle,
grid, map and table of the spec, vectors of the call, and the same as they are given to the kernel)."""


def present(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None) -> list[Pair | None]:
    """The pairs of q and of k; ``None`` for one without elements."""
    return [(x, y) if x is not None and y is not None and x.numel() else None for x, y in ((q, q_out), (k, k_out))]


def is_in_place(pair: Pair) -> bool:
    """Whether the output is the input."""
    x, y = pair[0], pair[1]
    return y is x or (y.data_ptr() == x.data_ptr() and y.stride() == x.stride())


def launches_of(pairs: list[Pair | None]) -> list[list[Pair | None]]:
    """One launch for q and k; two if only one of them is rotated in place."""
    present = [pair for pair in pairs if pair is not None]
    if len({is_in_place(pair) for pair in present}) == 2:
        return [[pairs[0], None], [None, pairs[1]]]
    return [pairs] if present else []


def prepared(
    pairs: list[Pair | None], batch: int, tokens: int, inputs: Inputs, spec: Spec,
    normed: bool = False, one_head: bool = False, beside: Beside | None = None,
) -> Prepared:  # fmt: skip
    """The launch of a call with angles. ``beside``: what it has besides q, k and their outputs."""
    positions, seq_len, from_seq_len = inputs.positions, inputs.seq_len, inputs.from_seq_len
    angle = _angle(
        spec,
        None if positions is None else (positions.is_floating_point(), positions.shape[0] > 1),
        tuple(_count(t) for t in (inputs.offset, seq_len, from_seq_len)),
        _search_steps(inputs.cu_seqlens),
        inputs.inverse,
        inputs.unscaled,
    )
    others = [] if positions is None else [position_strides(positions)]
    by_group = positions is None or 2 in (angle.OFFSETS, angle.LENGTHS, angle.FROM_LENGTHS)
    loads_per_pair = angle.MAPPED or bool(angle.TABLE_ROWS)
    count, tile, strides = layout_of(
        pairs, others, batch, tokens, by_group, spec.rotation, inputs.inverse, loads_per_pair, one_head, normed, beside
    )
    x = next(pair for pair in pairs if pair is not None)[0]
    tensors = device_tensors(spec, angle.PHASE, bool(angle.LADDER), x.device)
    of_positions = strides.pop() if others else (0, 0)
    frequency = spec.frequency
    vectors = (inputs.offset, seq_len, from_seq_len, inputs.cu_seqlens)
    dense = tuple(map(_dense, vectors))
    arguments = (
        *pointers(pairs), positions, *dense, *tensors,
        count, tokens, 1.0 / tokens, 0 if inputs.cu_seqlens is None else inputs.cu_seqlens.shape[0] - 1,
        *(s for each in strides for s in each),
        0 if positions is None else positions.stride(0), *of_positions,
        *scalars(frequency, angle.PHASE),
        frequency.attention_scaling, frequency.long_attention_scaling or 0.0,
    )  # fmt: skip
    return x, arguments, tile, angle, (-(-count // tile.TOKENS), tile.CHUNKS), tensors, vectors, dense


def pointers(pairs: list[Pair | None]) -> list[Tensor | None]:
    """q and k, then their outputs, then what else there is of each."""
    count = len(pairs[0] or pairs[1] or ())
    return [None if pair is None else pair[side] for side in _SIDES[:count] for pair in pairs]


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _count(vector: Tensor | None) -> int:
    """0 none, 1 one for all tokens, 2 one per group."""
    return 0 if vector is None else min(vector.numel(), 1) + (vector.numel() > 1)


def _search_steps(cu_seqlens: Tensor | None) -> int:
    """Steps that bisect all sequences, a multiple of four, so that few numbers of sequences need another kernel."""
    return 0 if cu_seqlens is None else max(1, -(-(cu_seqlens.shape[0] - 1).bit_length() // 4)) * 4


def position_strides(positions: Tensor) -> Strides:
    """(batch, token) strides of (axes, batch or 1, tokens)."""
    return (positions.stride(1) if positions.shape[1] > 1 else 0), positions.stride(2)


def layout_of(
    pairs: list[Pair | None], others: list[Strides], batch: int, tokens: int, by_group: bool, rotation: Rotation,
    inverse: bool, loads_per_pair: bool, one_head: bool = False, normed: bool = False, beside: Beside | None = None,
) -> tuple[int, Tile, list[Strides]]:  # fmt: skip
    """(tokens, tile, strides of q, k, their outputs, ``beside`` and ``others``); batch and tokens become one axis if
    they can."""
    sides = pointers(pairs)
    strides: list[Strides] = [(0, 0, 0) if x is None else x.stride()[:3] for x in sides]
    strides += others if beside is None else [beside.strides, *others]
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
    aligned = alignment(size, offsets, rotation)
    if beside is not None:
        aligned = min(aligned, beside.aligned)
    memory = Memory(size, aligned, dense_heads, is_in_place(first), batched)
    more = {"normed": True} if normed else {}  # one more keyword would cost other calls a tenth of a microsecond
    tile = launch_tile(
        batch * tokens, *heads, rotation, memory, multiprocessors=multiprocessors_of(used[0].device),
        inverse=inverse, loads_per_pair=loads_per_pair, one_head=one_head, **more,
    )  # fmt: skip
    return batch * tokens, tile, strides


@cache
def multiprocessors_of(device: torch.device) -> int:
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
    ladder = ladder_of(spec)
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


def ladder_of(spec: Spec) -> int:
    """Entries of the ladder that the kernel computes; none with a table, unless theta grows."""
    params = spec.frequency
    return 0 if params.multipliers and not params.dynamic_factor else max(spec.rotation.index) + 1
