"""Figures of the GPU kernels' machine code, found without a GPU: nothing is timed.

Instructions are those of the machine code, each counted as often as an emulated part of the launch executes it (see
``tests/emulation/figures.py``). For comparison, a textbook kernel rotates one head of one token with a cos/sin table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from emulation import aot, targets
from emulation.cuda import build
from emulation.figures import (
    Figures,
    Shape,
    cuda_figures,
    triton_append_figures,
    triton_figures,
    triton_launches_figures,
    triton_norm_backward_figures,
    triton_norm_figures,
)

__all__ = ["AMD", "KERNELS", "NVIDIA", "Shape", "cases", "has_nvcc", "nvidia_bf16_figures", "to_dict", "triton_figures"]

NVIDIA = targets.sm(targets.TRITON)
AMD = ("gfx942", "gfx1100")
PHASES = ("prefill", "decode")


@triton.jit
def textbook_kernel(x_ptr, out_ptr, cos_ptr, sin_ptr, num_heads, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Rotate halves of one head of one token. Grid: (tokens, heads). x (tokens, heads, 2 HALF), cos (tokens, HALF)."""
    token, head = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    inside = i < HALF
    cos = tl.load(cos_ptr + token * HALF + i, mask=inside)
    sin = tl.load(sin_ptr + token * HALF + i, mask=inside)
    row = (token * num_heads + head) * 2 * HALF
    first = tl.load(x_ptr + row + i, mask=inside).to(tl.float32)
    second = tl.load(x_ptr + row + HALF + i, mask=inside).to(tl.float32)
    tl.store(out_ptr + row + i, first * cos - second * sin, mask=inside)
    tl.store(out_ptr + row + HALF + i, second * cos + first * sin, mask=inside)


def textbook_figures(shape: Shape, target: str) -> Figures:
    """Figures of two launches, for q and for k, with an fp32 table made beforehand."""
    half = shape.head_dim // 2
    q, k = shape.tensors()
    tokens = q.shape[0] * q.shape[1]
    cos, sin = (torch.empty(tokens, half) for _ in range(2))
    with aot.compiling(target, sys.modules[__name__], "textbook_kernel") as launches:
        for x in (q, k):
            block = triton.next_power_of_2(half)
            textbook_kernel[(tokens, x.shape[2])](
                x, torch.empty_like(x), cos, sin, x.shape[2], HALF=half, BLOCK=block, num_warps=1
            )
    return triton_launches_figures("textbook", target, shape, launches)


KERNELS: dict[str, Callable[[Shape, str], Figures]] = {
    "triton": triton_figures,
    "cuda": cuda_figures,
    "textbook": textbook_figures,
    "triton norm": triton_norm_figures,
    "triton norm backward": triton_norm_backward_figures,
    "triton append": triton_append_figures,
    "triton norm append": partial(triton_append_figures, normed=True),
}
_ALL_SHAPES = ("triton", "cuda")


def cases() -> Iterator[tuple[str, str, Shape]]:
    """(kernel, target, shape): every dtype at 128 channels, every width and pairing in bf16; on AMD bf16 only."""
    dtypes = [Shape(dtype, 128, phase) for dtype in (torch.bfloat16, torch.float16, torch.float32) for phase in PHASES]
    widths = [Shape(head_dim=width, phase=phase) for width in (64, 96, 256) for phase in PHASES]
    pairs = [Shape(head_dim=width, phase=phase, pairing="interleaved") for width in (128, 64) for phase in PHASES]
    for shape, target, kernel in product([*dtypes, *widths, *pairs], NVIDIA, (*_ALL_SHAPES, "textbook")):
        if kernel != "textbook" or shape.pairing == "half":
            yield kernel, target, shape
    for shape, target in product([*dtypes[:2], *pairs[:2]], NVIDIA):
        yield "triton norm", target, shape
        yield "triton append", target, shape
        yield "triton norm append", target, shape
        if shape.phase == "prefill":
            yield "triton norm backward", target, shape
    for shape, target in product(dtypes[:2], AMD):
        yield "triton", target, shape


def to_dict(figures: Figures) -> dict[str, Any]:
    """The figures of a case, for JSON."""
    shape, facts = figures.shape, figures.facts
    dtype = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[shape.dtype]
    accessed = None
    if figures.loads is not None and figures.stores is not None:
        accessed = sum(figures.loads.values()) + sum(figures.stores.values())
    return {
        "kernel": figures.kernel,
        "target": figures.target,
        "case": {
            "dtype": dtype, "head_dim": shape.head_dim, "phase": shape.phase, "pairing": shape.pairing,
            "q_heads": shape.q_heads, "k_heads": shape.k_heads,
        },
        "launches": figures.launches,
        "registers": facts.registers,
        "stack_bytes": facts.stack_bytes,
        "shared_bytes": facts.shared_bytes,
        "local_instructions": facts.local_instructions,
        "slow_instructions": len(facts.slow_instructions),
        "load_widths": facts.load_widths,
        "store_widths": facts.store_widths,
        "instructions_per_element": figures.instructions_per_element,
        "fp64_instructions_per_element": figures.doubles_per_element,
        "nops_per_element": figures.nops_per_element,
        "accessed_bytes_per_element": accessed,
        "dram_bytes_per_element": figures.dram_bytes_per_element,
    }  # fmt: skip


def has_nvcc() -> bool:
    """Whether the CUDA kernels' PTX can be made here."""
    return build.nvcc() is not None


def nvidia_bf16_figures() -> list[dict[str, Any]]:
    """:func:`to_dict` of every bf16 case of the shipped kernels on the NVIDIA targets; no CUDA kernels without nvcc."""
    kernels = ["triton"] + (["cuda"] if has_nvcc() else [])
    return [
        to_dict(KERNELS[kernel](shape, target))
        for kernel, target, shape in cases()
        if kernel in kernels and target in NVIDIA and shape.dtype == torch.bfloat16
    ]
