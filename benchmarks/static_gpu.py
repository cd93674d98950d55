"""The GPU kernels' machine code, with no GPU: ``python -m benchmarks.static_gpu [--json] [--only TEXT]``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .rows.static_figures import KERNELS, cases, has_nvcc, to_dict


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _printed(found: list[dict[str, Any]]) -> Table:
    columns = ("kernel", "target", "case", "launches", "registers", "stack, local, shared", "load B", "store B",
               "instr./el.", "of these fp64", "NOPs/el.", "accessed B/el.", "DRAM B/el.")  # fmt: skip
    table = Table(*columns, title="The GPU kernels' machine code; no GPU ran and nothing was timed")
    for entry in found:
        case = entry["case"]
        memory = f"{entry['stack_bytes']}, {entry['local_instructions']}, {entry['shared_bytes']}"
        widths = ["/".join(map(str, sorted(entry[key], reverse=True))) for key in ("load_widths", "store_widths")]
        figures = ("instructions", "fp64_instructions", "nops", "accessed_bytes", "dram_bytes")
        table.add_row(
            entry["kernel"], entry["target"], f"{case['phase']} {case['head_dim']} {case['dtype']} {case['pairing']}",
            str(entry["launches"]), str(entry["registers"]), memory, *widths,
            *(_number(entry[f"{name}_per_element"]) for name in figures),
        )  # fmt: skip
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    only: Annotated[str, typer.Option(help="the cases whose kernel, target and shape contain all these words")] = "",
) -> None:
    """Print figures of the kernels' machine code, beside a textbook kernel that reads a table."""
    wanted = only.split()
    chosen = [case for case in cases() if all(word in f"{case[0]} {case[1]} {case[2]}" for word in wanted)]
    if not has_nvcc():
        chosen = [case for case in chosen if case[0] != "cuda"]
        print("without the CUDA kernels: their PTX needs nvcc, which is not installed", file=sys.stderr)
    if not chosen:
        raise typer.BadParameter(f"got {only!r}, no case has these words", param_hint="--only")
    found = [to_dict(KERNELS[kernel](shape, target)) for kernel, target, shape in chosen]
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        Console().print(_printed(found))


if __name__ == "__main__":
    typer.run(main)
