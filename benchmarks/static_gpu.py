"""What the GPU kernels' machine code comes to, with no GPU: ``python benchmarks/static_gpu.py [--json] [--only TEXT]``.

Figures of code, not of speed: nothing is timed. Instructions are those of the real machine code, executed as often as
an emulated part of the launch comes by them; how they were found is in ``tests/emulation/figures.py``. The yardstick is
a kernel of the textbook kind, which rotates one head of one token by a table of cosines and sines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import triton.language as tl
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from emulation import aot
from emulation.cuda import build
from emulation.figures import Figures, Shape, cuda_figures, triton_figures, triton_launches_figures

NVIDIA = ("sm_80", "sm_90", "sm_100", "sm_120")
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
    """Of two launches, for q and for k; the table, in fp32, is there already."""
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
}


def cases() -> Iterator[tuple[str, str, Shape]]:
    """(kernel, target, shape): every dtype at 128 channels, every width and pairing in bf16; on AMD bf16 only."""
    dtypes = [Shape(dtype, 128, phase) for dtype in (torch.bfloat16, torch.float16, torch.float32) for phase in PHASES]
    widths = [Shape(head_dim=width, phase=phase) for width in (64, 96, 256) for phase in PHASES]
    pairs = [Shape(head_dim=width, phase=phase, pairing="interleaved") for width in (128, 64) for phase in PHASES]
    for shape, target, kernel in product([*dtypes, *widths, *pairs], NVIDIA, KERNELS):
        if kernel != "textbook" or shape.pairing == "half":
            yield kernel, target, shape
    for shape, target in product(dtypes[:2], AMD):
        yield "triton", target, shape


def row_of(figures: Figures) -> dict[str, Any]:
    """One object of the JSON output."""
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


def number(value: float | None) -> str:
    """For the table."""
    return "-" if value is None else f"{value:.2f}"


def printed(rows: list[dict[str, Any]]) -> Table:
    """The table of rows."""
    columns = ("kernel", "target", "case", "launches", "registers", "stack, local, shared", "load B", "store B",
               "instr./el.", "of these fp64", "NOPs/el.", "accessed B/el.", "DRAM B/el.")  # fmt: skip
    table = Table(*columns, title="GPU kernels by their code; no GPU ran and nothing was timed")
    for row in rows:
        case = row["case"]
        memory = f"{row['stack_bytes']}, {row['local_instructions']}, {row['shared_bytes']}"
        widths = ["/".join(map(str, sorted(row[key], reverse=True))) for key in ("load_widths", "store_widths")]
        figures = ("instructions", "fp64_instructions", "nops", "accessed_bytes", "dram_bytes")
        table.add_row(
            row["kernel"], row["target"], f"{case['phase']} {case['head_dim']} {case['dtype']} {case['pairing']}",
            str(row["launches"]), str(row["registers"]), memory, *widths,
            *(number(row[f"{name}_per_element"]) for name in figures),
        )  # fmt: skip
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print a list of objects")] = False,
    only: Annotated[str, typer.Option(help="rows whose kernel, target and case have all these words")] = "",
) -> None:
    """Print what the kernels' machine code comes to, beside a textbook kernel that reads a table."""
    wanted = only.split()
    chosen = [case for case in cases() if all(word in f"{case[0]} {case[1]} {case[2]}" for word in wanted)]
    if build.nvcc() is None:
        chosen = [case for case in chosen if case[0] != "cuda"]
        print("without the CUDA kernels: there is no nvcc, which makes the PTX that is emulated", file=sys.stderr)
    if not chosen:
        raise typer.BadParameter(f"got {only!r}, which no row has", param_hint="--only")
    rows = [row_of(KERNELS[kernel](shape, target)) for kernel, target, shape in chosen]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        Console().print(printed(rows))


if __name__ == "__main__":
    typer.run(main)
