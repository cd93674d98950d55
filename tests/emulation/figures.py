"""Static figures of a launch: facts of its machine code, and how often that would run, from an emulated part of it.

Nothing here is a measurement: no GPU is asked, and nothing is timed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.backends.nvidia.compiler import get_ptxas

import rope_kernels
from rope_kernels import RopeConfig
from rope_kernels.backends.inputs import Append, Inputs, Norms
from rope_kernels.backends.triton import append_kernels, norm_backward_kernels, norm_kernels
from rope_kernels.backends.triton import kernels as triton_kernels
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.norms import Norm
from rope_kernels.core.spec import parse_spec

from . import aot, sass
from .blocks import pieces
from .cuda import build
from .cuda.appended import CudaKernels
from .cuda.calls import CudaCall, cuda_call
from .cuda.emulated import SUCCESS, launcher
from .ptx import Counts, Memory, Program, run

__all__ = [
    "Figures",
    "Shape",
    "cuda_append_figures",
    "cuda_figures",
    "library_kernels",
    "triton_append_figures",
    "triton_code",
    "triton_figures",
    "triton_launches",
    "triton_launches_figures",
    "triton_norm_backward_figures",
    "triton_norm_figures",
]

LIBRARY = Path(rope_kernels.__file__).parent / "_native.so"
LLAMA = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192, max_position_embeddings=131072,
)  # fmt: skip
PHASES = {"prefill": (1, 8192), "decode": (4, 1)}
"""(batch, tokens), on the 48 multiprocessors that tensors of the CPU count as."""
_EMULATED_TOKENS = 256
"""At most; the others would do the same."""
_EMULATED_PROGRAMS = 4


@dataclass(frozen=True)
class Shape:
    """A call of Llama-8B's heads."""

    dtype: torch.dtype = torch.bfloat16
    head_dim: int = 128
    phase: str = "prefill"
    pairing: str = "half"
    q_heads: int = 32
    k_heads: int = 8
    v_heads: int = 0

    def __str__(self) -> str:
        return f"{self.phase}-d{self.head_dim}-{self.pairing}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def elements(self) -> int:
        """Of q and k, and of v if it is stored."""
        batch, tokens = PHASES[self.phase]
        return batch * tokens * (self.q_heads + self.k_heads + self.v_heads) * self.head_dim

    def tensors(self) -> tuple[Tensor, Tensor]:
        """q and k, whose values do not matter."""
        batch, tokens = PHASES[self.phase]
        q, k = (torch.empty(batch, tokens, h, self.head_dim, dtype=self.dtype) for h in (self.q_heads, self.k_heads))
        return q, k

    def call(self) -> tuple[Inputs, str]:
        """What the operator hands on, and the config's spec. One row of positions for all of a prefill."""
        batch, tokens = PHASES[self.phase]
        positions = torch.arange(tokens) + torch.arange(batch)[:, None] * 1000
        config = RopeConfig(head_dim=self.head_dim, pairing=self.pairing, **LLAMA)
        return Inputs(positions[None]), config.spec()


@dataclass(frozen=True)
class Figures:
    """What a call comes to on a target.

    Attributes:
        launches: kernels that a call launches.
        facts: of the kernel's machine code.
        dram_bytes_per_element: bytes of all tensors that a call reads or writes, each counted once.
        instructions_per_element: executed thread instructions without NOPs; ``None`` where only the code is known.
        nops_per_element: ptxas pads fp64 instructions with them for sm_120.
        doubles_per_element: fp64 instructions, which are included above, and which not every GPU runs fast.
        loads, stores: bytes accessed per element, by width of the access.
    """

    kernel: str
    target: str
    shape: Shape
    launches: int
    facts: sass.Facts
    dram_bytes_per_element: float
    instructions_per_element: float | None = None
    nops_per_element: float | None = None
    doubles_per_element: float | None = None
    loads: dict[int, float] | None = None
    stores: dict[int, float] | None = None


@dataclass(frozen=True)
class _Part:
    """An emulated part of a launch: what ran of it, and how many elements that was for."""

    counts: Counts
    executed: dict[str, float]
    elements: float


def _visible(tensors: dict[str, Tensor]) -> Memory:
    """The first rows of each tensor."""
    memory = Memory()
    for name, x in tensors.items():
        rows = x if x.dim() < 3 or x.shape[0] > 1 else x[:, :_EMULATED_TOKENS]
        data = torch.empty(0, dtype=torch.uint8)
        size = x.element_size()
        data.set_(x.untyped_storage(), x.storage_offset() * size, (rows.numel() * size,), (1,))
        memory.add(name, x.data_ptr(), data.numpy())
    return memory


def _emulated(
    program: Program, name: str, grid: Sequence[int], threads: int, arguments: Sequence[Any],
    tensors: dict[str, Tensor], code: sass.Code, stored: float,
) -> _Part:  # fmt: skip
    """``stored``: bytes that are stored per element."""
    kernel, memory = program.kernels[name], _visible(tensors)
    part = (min(grid[0], _EMULATED_PROGRAMS), *grid[1:])
    values = [*arguments, *[0] * (len(kernel.parameters) - len(arguments))]  # Triton's scratch memory, not used

    counts = run(kernel, part, (threads,), values, memory)
    found = pieces(kernel, counts)
    elements = sum(width * number for width, number in counts.stores.items()) / stored
    return _Part(counts, sass.executed(code, found), elements)


def _bytes_per_element(tensors: Sequence[dict[str, Tensor]], elements: int) -> float:
    unique = {x.data_ptr(): x for each in tensors for x in each.values()}
    return sum(x.numel() * x.element_size() for x in unique.values()) / elements


def _figures(
    kernel: str, target: str, shape: Shape, facts: sass.Facts, tensors: list[dict[str, Tensor]], parts: list[_Part]
) -> Figures:
    """Of launches whose parts have the same share of all elements."""
    static = Figures(kernel, target, shape, len(tensors), facts, _bytes_per_element(tensors, shape.elements))
    if not parts:
        return static
    executed: Counter[str] = Counter()
    accessed: dict[str, Counter[int]] = {"loads": Counter(), "stores": Counter()}
    for part in parts:
        executed.update(part.executed)
        for which, total in accessed.items():
            total.update({width: width * number for width, number in getattr(part.counts, which).items()})
    elements = sum(part.elements for part in parts)
    nops = executed.pop("NOP", 0)
    doubles = sum(count for opcode, count in executed.items() if opcode in sass.DOUBLES)
    return replace(
        static,
        instructions_per_element=sum(executed.values()) / elements,
        nops_per_element=nops / elements,
        doubles_per_element=doubles / elements,
        **{which: {w: n / elements for w, n in sorted(total.items())} for which, total in accessed.items()},
    )


def triton_code(launch: aot.Launch, target: str) -> tuple[sass.Facts, sass.Code | None]:
    """Facts of a compiled Triton kernel, and its code where that is NVIDIA's."""
    assembly, shared = launch.compiled.asm, launch.compiled.metadata.shared  # which Triton asks for at the launch
    if "amdgcn" in assembly:
        return replace(sass.amd_facts(assembly["amdgcn"]), shared_bytes=shared), None
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(assembly["cubin"])
        ((facts, code),) = sass.nvidia_kernels(binary, int(target.removeprefix("sm_"))).values()
    return replace(facts, shared_bytes=shared), code


def _triton_part(launch: aot.Launch, target: str, shipped: sass.Code, stored: float) -> _Part:
    name, ptx = launch.compiled.metadata.name, launch.compiled.asm["ptx"]
    program = Program.parse(ptx)
    ptxas = get_ptxas(int(target.removeprefix("sm_"))).path
    code = sass.assembled(ptx, name, program.target, ptxas, ["--regAllocOptLevel=2"])
    assert sass.same_code(code, shipped)
    threads = 32 * launch.compiled.metadata.num_warps
    return _emulated(program, name, launch.grid, threads, launch.scalars, launch.tensors, code, stored)


def triton_launches_figures(
    kernel: str, target: str, shape: Shape, launches: list[aot.Launch], stored: float | None = None
) -> Figures:
    """Of launches that were compiled for ``target``; all of one kernel.

    ``stored``: bytes that it stores per element, if more than the element.
    """
    stored = stored or shape.dtype.itemsize
    tensors = [launch.tensors for launch in launches]
    facts, code = triton_code(launches[0], target)
    parts = [] if code is None else [_triton_part(each, target, code, stored) for each in launches]
    return _figures(kernel, target, shape, facts, tensors, parts)


def triton_launches(shape: Shape, target: str, in_place: bool = False) -> list[aot.Launch]:
    """What Triton compiles for a call."""
    q, k = shape.tensors()
    q_out, k_out = (q, k) if in_place else (torch.empty_like(q), torch.empty_like(k))
    inputs, spec = shape.call()
    with aot.compiling(target, triton_kernels, "rotate_kernel") as launches:
        triton_launch.rotate(q, k, q_out, k_out, inputs, parse_spec(spec))
    return launches


@cache
def triton_figures(shape: Shape, target: str, in_place: bool = False) -> Figures:
    """Of the Triton kernel; for AMD's targets ("gfx942") facts only."""
    return triton_launches_figures("triton", target, shape, triton_launches(shape, target, in_place))


def _norms(shape: Shape) -> Norms:
    """Qwen3's: a weight of q's dtype for q and one for k, before the rotation."""
    return Norms(Norm(1e-6), Norm(1e-6), *(torch.ones(shape.head_dim, dtype=shape.dtype) for _ in "qk"))


@cache
def triton_norm_figures(shape: Shape, target: str, in_place: bool = False) -> Figures:
    """Of the Triton kernel that norms q and k and rotates them."""
    q, k = shape.tensors()
    q_out, k_out = (q, k) if in_place else (torch.empty_like(q), torch.empty_like(k))
    inputs, spec = shape.call()
    with aot.compiling(target, norm_kernels, "rotate_norm_kernel") as launches:
        triton_launch.rotate_norm(q, k, q_out, k_out, inputs, parse_spec(spec), _norms(shape))
    return triton_launches_figures("triton norm", target, shape, launches)


_PAGE_SIZE = 16


def _append_arguments(shape: Shape, normed: bool, cached: torch.dtype | None, in_place: bool) -> tuple[Any, ...]:
    """Of a backend's ``rotate_append``: k and v go to a cache of ``cached``, their dtype or one of 8 bits, alone."""
    q, k = shape.tensors()
    v, q_out = torch.empty_like(k), q if in_place else torch.empty_like(q)
    tokens = q.shape[0] * q.shape[1]
    paged = [torch.empty(-(-tokens // _PAGE_SIZE), _PAGE_SIZE, *k.shape[2:], dtype=cached or q.dtype) for _ in "kv"]
    scales = [torch.ones(1) if cached else None for _ in "kv"]
    append = Append(torch.arange(tokens), v, None, None, *paged, *scales)
    inputs, spec = shape.call()
    norms = _norms(shape) if normed else Norms(None, None, None, None)
    return q, k, q_out, None, inputs, parse_spec(spec), norms, append


def _stored_by_append(shape: Shape, cached: torch.dtype | None) -> float:
    """Bytes per element of q, k and v."""
    item, heads = shape.dtype.itemsize, shape.q_heads + 2 * shape.k_heads
    return (shape.q_heads * item + 2 * shape.k_heads * (cached.itemsize if cached else item)) / heads


@cache
def triton_append_figures(
    shape: Shape, target: str, normed: bool = False, cached: torch.dtype | None = None, in_place: bool = False
) -> Figures:
    """Of the Triton kernel that rotates q and stores k and v in a cache of ``cached``, its dtype or one of 8 bits.

    Elements are those of q, k and v; their bytes are counted without those of the cache that the call does not store.
    """
    with aot.compiling(target, append_kernels, "rotate_append_kernel") as launches:
        triton_launch.rotate_append(*_append_arguments(shape, normed, cached, in_place))
    name = f"triton {'norm ' if normed else ''}append"
    stored = _stored_by_append(shape, cached)
    return triton_launches_figures(name, target, replace(shape, v_heads=shape.k_heads), launches, stored)


@cache
def triton_norm_backward_figures(shape: Shape, target: str) -> Figures:
    """Of the Triton kernel for its gradients."""
    inputs, spec = shape.call()
    with aot.compiling(target, norm_backward_kernels, "rotate_norm_backward_kernel") as launches:
        triton_launch.rotate_norm_backward(shape.tensors(), *shape.tensors(), inputs, parse_spec(spec), _norms(shape))
    partials = [x for launch in launches for name, x in launch.tensors.items() if name.endswith("partials_ptr")]
    stored = shape.dtype.itemsize + sum(x.numel() * x.element_size() for x in partials) / shape.elements
    return triton_launches_figures("triton norm backward", target, shape, launches, stored)


def _plain(name: str) -> str:
    """A mangled name without what nvcc makes of the file's path."""
    return re.sub(r"_GLOBAL__N__[0-9a-f]{8}_(\d+_kernel_cu)_[0-9a-f]{8}", r"\1", name)


@cache
def library_kernels(target: str) -> dict[str, tuple[sass.Facts, sass.Code]]:
    """Every CUDA kernel in the installed native extension."""
    kernels = sass.nvidia_kernels(LIBRARY, int(target.removeprefix("sm_")))
    return {_plain(name): each for name, each in kernels.items()}


@cache
def cuda_figures(shape: Shape, target: str) -> Figures:
    """Of the CUDA kernel in the installed native extension, out of place.

    Raises:
        RuntimeError: the PTX that is emulated does not give the very code in the extension.
    """
    q, k = shape.tensors()
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    call = cuda_call([(q, q_out), (k, k_out)], *shape.call(), "bshd")
    return _cuda_call_figures("cuda", call, shape, target, shape.dtype.itemsize)


@cache
def cuda_append_figures(shape: Shape, target: str, normed: bool = False, cached: torch.dtype | None = None) -> Figures:
    """Of the CUDA kernel that stores in a cache; see :func:`triton_append_figures` and :func:`cuda_figures`."""
    calls: list[CudaCall] = []
    CudaKernels(calls.append).rotate_append(*_append_arguments(shape, normed, cached, False))
    name = f"cuda {'norm ' if normed else ''}append"
    stored = _stored_by_append(shape, cached)
    return _cuda_call_figures(name, calls[0], replace(shape, v_heads=shape.k_heads), target, stored)


def _cuda_call_figures(name: str, call: CudaCall, shape: Shape, target: str, stored: float) -> Figures:
    arch = int(target.removeprefix("sm_"))
    front_end = max(t for t in build.TARGETS if t <= arch)
    cuda = launcher()
    cuda.stand_in = lambda launch: SUCCESS
    try:
        error = cuda.launch(call, front_end)
    finally:
        cuda.stand_in = None
    assert error is None, error
    parts = []
    for launch in cuda.launches:
        code = sass.assembled(build.ptx(front_end), launch.kernel, target, build.ptxas())
        if not sass.same_code(code, library_kernels(target)[_plain(launch.kernel)][1]):
            raise RuntimeError(f"{LIBRARY} was built from other sources, or by another nvcc: build it anew")
        program, threads = cuda.programs[front_end], launch.block[0]
        parts.append(
            _emulated(program, launch.kernel, launch.grid, threads, launch.arguments, call.tensors, code, stored)
        )
    facts, _ = library_kernels(target)[_plain(cuda.launches[0].kernel)]
    return _figures(name, target, shape, facts, [call.tensors] * len(cuda.launches), parts)
