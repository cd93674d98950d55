"""What the native library needs to repeat a launch of a compiled Triton kernel without Python.

Source of the layout: ``launchKernel`` in triton/backends/nvidia/driver.c, which gives CUDA's driver the arguments that
are not constexpr, each in memory of its own, and after them the addresses of two scratch buffers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["ADDRESSES", "CompiledLaunch", "Launched", "compiled_launch"]

ADDRESSES = (
    "q",
    "k",
    "q_out",
    "k_out",
    "positions",
    "offset",
    "seq_len",
    "from_seq_len",
    "cu_seqlens",
    "cos",
    "sin",
)
"""The tensors of a call in the order of csrc/ops/compiled.h; a launch refers to them by number."""

_CELL = 8
_FLOATS = {"fp32": "<f4x", "f32": "<f4x", "fp64": "<d"}
_WARP = 32
_ENTRY = re.compile(r"\.entry\s+\w+\((.*?)\)", re.DOTALL)


class CompiledLaunch(NamedTuple):
    """One launch, as csrc/direct/compiled_launches.h reads it."""

    function: int
    grid_x: int
    grid_y: int
    grid_z: int
    threads: int
    shared_bytes: int
    parameters: bytes
    addresses: bytes


class Launched(NamedTuple):
    """The launches of a call, and the tensors and kernels that they need."""

    launches: tuple[CompiledLaunch, ...]
    needed: tuple[object, ...]


def compiled_launch(
    kernel: Any, grid: tuple[int, int], arguments: Sequence[object], tensors: Mapping[int, str]
) -> CompiledLaunch | None:
    """The launch that has just been made; ``None`` if it is not for CUDA's driver, or more than its plain launch.

    Args:
        kernel: what the launch returned, Triton's compiled kernel.
        grid: its programs.
        arguments: of the launch, up to the first constexpr.
        tensors: by the number of an argument, the tensor of the call whose memory it is, one of :data:`ADDRESSES`.
    """
    metadata = getattr(kernel, "metadata", None)
    if metadata is None or "ptx" not in kernel.asm or not _is_plain(metadata):
        return None
    types = list(kernel.src.signature.values())
    cells: list[bytes] = []
    addresses: list[int] = []
    for number, (kind, value) in enumerate(zip(types, arguments, strict=False)):
        if kind == "constexpr":
            continue
        if number in tensors:
            addresses += [len(cells), ADDRESSES.index(tensors[number])]
        cells.append(_cell(kind, value))
    scratch = _num_parameters(kernel) - len(cells)
    if scratch not in (0, 1, 2):
        return None
    return CompiledLaunch(
        kernel.function, *grid, 1, _WARP * metadata.num_warps, metadata.shared,
        b"".join(cells) + bytes(_CELL * scratch), bytes(addresses),
    )  # fmt: skip


def _is_plain(metadata: Any) -> bool:
    unusual = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    return metadata.num_ctas == 1 and not any(getattr(metadata, name, 0) for name in unusual)


def _num_parameters(kernel: Any) -> int:
    entry = _ENTRY.search(kernel.asm["ptx"])
    return 0 if entry is None else entry[1].count(".param")


def _cell(kind: str, value: Any) -> bytes:
    if isinstance(value, Tensor):
        return struct.pack("<Q", value.data_ptr())
    if kind in _FLOATS:
        return struct.pack(_FLOATS[kind], value)
    return struct.pack("<q" if kind.startswith("i") else "<Q", value)
