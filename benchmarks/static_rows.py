"""The static budgets of the GPU kernels, from what static_gpu.py finds in their machine code: nothing is timed."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["REGISTERS", "budget_of", "found", "static_budgets"]

REGISTERS = 64
_PREFILL, _DECODE, _DECODE_OTHERS = 5, 10, 13
_SIXTEEN_BITS = 2  # bytes


def found() -> list[dict[str, Any]]:
    """Every bf16 case of the shipped kernels on the four NVIDIA targets, as ``static_gpu.py --json`` has them."""
    import static_gpu

    from emulation.cuda import build

    kernels = ["triton"] + (["cuda"] if build.nvcc() is not None else [])
    return [
        static_gpu.row_of(static_gpu.KERNELS[kernel](shape, target))
        for kernel, target, shape in static_gpu.cases()
        if kernel in kernels and target in static_gpu.NVIDIA and shape.dtype == torch.bfloat16
    ]


def budget_of(row: dict[str, Any]) -> float:
    """Instructions per element that a case may have."""
    case = row["case"]
    if case["phase"] == "prefill":
        return _PREFILL
    return _DECODE if (case["head_dim"], case["pairing"]) == (128, "half") else _DECODE_OTHERS


def static_budgets(rows: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """Budgets as (what is asked, what the worst case has, whether all cases meet it); none without rows."""
    made = []
    for kernel in sorted({row["kernel"] for row in rows}):
        mine = [row for row in rows if row["kernel"] == kernel]
        for phase in ("prefill", "decode"):
            for limit in sorted({budget_of(row) for row in mine if row["case"]["phase"] == phase}):
                cases = [row for row in mine if row["case"]["phase"] == phase and budget_of(row) == limit]
                worst = max(row["instructions_per_element"] for row in cases)
                where = _where(cases)
                made.append((f"{kernel}, {phase}, {where}: at most {limit} instructions per element",
                             f"{worst:.2f}", worst <= limit))  # fmt: skip
        made += [(f"{kernel}: {asked}", str(value), met) for asked, value, met in _code(mine)]
    return made


def _where(rows: list[dict[str, Any]]) -> str:
    widths = sorted({row["case"]["head_dim"] for row in rows})
    pairings = sorted({row["case"]["pairing"] for row in rows})
    targets = sorted({row["target"] for row in rows}, key=lambda name: int(name.split("_")[1]))
    return f"d={'/'.join(map(str, widths))}, {' and '.join(pairings)}, {'/'.join(targets)}"


def _code(rows: list[dict[str, Any]]) -> list[tuple[str, object, bool]]:
    """Of one kernel: launches, bytes, widths, registers, and what it may not use."""
    launches = max(row["launches"] for row in rows)
    moved = max(row["dram_bytes_per_element"] for row in rows)
    narrow = min(int(width) for row in rows for width in row["store_widths"])
    loads = min(max(int(width) for width in row["load_widths"]) for row in rows)
    registers = max(row["registers"] for row in rows)
    memory = max(row[key] for row in rows for key in ("stack_bytes", "shared_bytes", "local_instructions"))
    slow = max(row["slow_instructions"] for row in rows)
    return [
        ("one launch for q and k", launches, launches == 1),
        ("each element read and written once, bytes per element", f"{moved:.3f}", moved < 2 * _SIXTEEN_BITS + 0.01),
        ("128-bit accesses, bytes", f"loads {loads}, stores {narrow}", loads == narrow == 16),
        (f"at most {REGISTERS} registers", registers, registers <= REGISTERS),
        ("no stack, local or shared memory", memory, memory == 0),
        ("no slow instructions (MUFU)", slow, slow == 0),
    ]
