"""How long a call of so many tokens should take on a GPU, by the shape of its launch. A model: no GPU has confirmed it.

A multiprocessor holds some programs at a time. Each waits for its positions, computes its angles, and then goes through
its tiles, one after the other: it asks memory for a tile, waits, rotates and writes. The call takes as long as the
slowest of four: these waits, the memory's bandwidth, the issue of instructions, and that of fp64 instructions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from rope_kernels import RopeConfig
from rope_kernels.backends.inputs import Inputs
from rope_kernels.backends.triton.plan import Memory, bytes_in_flight, launch_tile, num_tiles
from rope_kernels.core.rotation import Rotation

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

__all__ = ["MACHINES", "Call", "Launch", "Machine", "Prediction", "cuda_launch", "predict", "triton_launch"]

_ANSWER = 0.8e-6
"""Seconds that memory takes to answer, assumed."""
_START = 1e-6
"""Seconds of a program for its angles and its last stores, assumed."""
_WARPS = 32
"""Of a multiprocessor with 65,536 registers, at 64 per thread."""


@dataclass(frozen=True)
class Machine:
    """A GPU by its data sheet; of the bandwidth nine tenths are taken. ``doubles``: fp64 instructions per cycle."""

    name: str
    multiprocessors: int
    bytes_per_second: float
    hertz: float
    doubles: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second that a copy reaches."""
        return 0.9 * self.bytes_per_second


MACHINES = (
    Machine("H200", 132, 4.8e12, 1.83e9, 64),
    Machine("A100 80GB", 108, 2.039e12, 1.41e9, 32),
    Machine("RTX 5080", 84, 0.96e12, 2.62e9, 2),
)


@dataclass(frozen=True)
class Call:
    """What is rotated, in place."""

    tokens: int
    q_heads: int = 32
    k_heads: int = 8
    head_dim: int = 128
    item: int = 2
    pairing: str = "half"

    @property
    def elements(self) -> int:
        """Of q and k."""
        return self.tokens * (self.q_heads + self.k_heads) * self.head_dim

    @property
    def rotation(self) -> Rotation:
        """The geometry of its heads."""
        return Rotation(self.head_dim, self.head_dim // 2, self.head_dim // 2, pairing=self.pairing)


@dataclass(frozen=True)
class Launch:
    """A launch as far as the model knows it.

    Attributes:
        warps: of a program.
        programs: how many.
        tiles: that a program goes through.
        in_flight: bytes that a multiprocessor has asked for at a time.
        instructions, doubles: per element; the budgets, and what ``benchmarks.static_gpu`` counts of fp64.
    """

    warps: int
    programs: int
    tiles: int
    in_flight: float
    instructions: float
    doubles: float


@dataclass(frozen=True)
class Prediction:
    """Seconds of a call by each of its bounds."""

    waiting: float
    memory: float
    issue: float
    doubles: float

    @property
    def seconds(self) -> float:
        """The largest."""
        return max(self.waiting, self.memory, self.issue, self.doubles)


def triton_launch(call: Call, multiprocessors: int) -> Launch:
    """The launch of the Triton backend."""
    memory = Memory(call.item, IN_PLACE=True)
    heads = (call.q_heads, call.k_heads)
    tile = launch_tile(call.tokens, *heads, call.rotation, memory, multiprocessors=multiprocessors)
    many = tile.TOKENS > 1
    return Launch(
        warps=tile.WARPS,
        programs=-(-call.tokens // tile.TOKENS) * tile.CHUNKS,
        tiles=num_tiles(tile),
        in_flight=bytes_in_flight(tile, call.tokens / multiprocessors),
        instructions=5 if many else 13,
        doubles=0.1 if many else 0.6,
    )


def cuda_launch(call: Call, multiprocessors: int) -> Launch:
    """The launch of the CUDA kernels, asked of their own host code on a stand-in for a device; needs nvcc."""
    from emulation.cuda.emulated import launcher

    cuda = launcher()
    with cuda.planning(multiprocessors):
        error = cuda.launch_fields(*_cuda_call(call))
    if error is not None:
        raise RuntimeError(error)
    (launch,) = cuda.launches
    return _of_blocks(call, launch.grid[0], launch.block[0], multiprocessors)


def _cuda_call(call: Call) -> tuple[str, list[int]]:
    from emulation.cuda.calls import cuda_call

    dtype = torch.float32 if call.item == 4 else torch.bfloat16
    shapes = ((1, 1, heads, call.head_dim) for heads in (call.q_heads, call.k_heads))
    sides = [torch.empty(shape, dtype=dtype) if shape[2] else None for shape in shapes]
    positions = torch.zeros(1, 1, 1, dtype=torch.int64)
    spec = RopeConfig(head_dim=call.head_dim, pairing=call.pairing).spec()
    fields = cuda_call([(x, x) for x in sides], Inputs(positions), spec, "bshd").fields
    fields[3] = call.tokens
    return spec, fields


def _of_blocks(call: Call, blocks: int, threads: int, multiprocessors: int) -> Launch:
    """A launch of so many ``threads`` per block, which are the lanes of some heads of some tokens."""
    lanes = call.head_dim * call.item // 32
    slots = next(
        slots for slots in (64, 32, 16, 8, 4, 2, 1)
        if slots <= max(1, (call.q_heads + call.k_heads) // 4)  # several fit a block that has room for all tokens
        and threads == lanes * slots * max(1, 128 // (lanes * slots))
        and blocks == -(-call.tokens // max(1, 128 // (lanes * slots)))
    )  # fmt: skip
    at_once = 2 if call.item == 2 else 4
    heads = [-(-heads // slots) for heads in (call.q_heads, call.k_heads)]
    resident = max(1, 1024 // threads)
    return Launch(
        warps=-(-threads // 32),
        programs=blocks,
        tiles=sum(n // at_once + n % at_once for n in heads),
        in_flight=min(blocks / multiprocessors, resident) * threads * min(at_once, heads[0]) * 32,
        instructions=5 if slots == 1 else 13,
        doubles=0.0,
    )


def predict(call: Call, launch: Launch, machine: Machine) -> Prediction:
    """The model's times. Programs end at different times, so that their waves have no edges."""
    held = machine.multiprocessors * max(1, _WARPS // launch.warps)
    program = _ANSWER + _START + launch.tiles * _ANSWER
    cycles = machine.multiprocessors * machine.hertz
    return Prediction(
        waiting=program * max(1.0, launch.programs / held),
        memory=2 * call.elements * call.item / machine.bandwidth,
        issue=call.elements * launch.instructions / (128 * cycles),
        doubles=call.elements * launch.doubles / (machine.doubles * cycles),
    )
