"""The budgets of the CPU path, measured: ``python -m benchmarks.cpu_budgets [--json] [--only TEXT] [--seconds S]``.

Every row's result is checked before it is timed. Peers that are not installed are listed.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from rope_kernels.backends import native

from .rows.budgets import budget_rows
from .rows.cpu_limits import limit_rows
from .rows.peers import MissingPeerError
from .rows.row import RowResult, measure


def _printed(results: list[RowResult]) -> Table:
    table = Table("budget", "speed", "middle half", "needed", "met", title=f"CPU, bfloat16, {native.isa()}")
    for r in results:
        asked = ("", "") if r.needed is None else (f"{r.needed:.2f}x", "yes" if r.met else "no")
        table.add_row(r.name, f"{r.speed:.2f}x", f"{r.low:.2f}-{r.high:.2f}", *asked)
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    only: Annotated[str, typer.Option(help="measure the rows whose name contains this text")] = "",
    seconds: Annotated[float, typer.Option(help="seconds per row")] = 2.0,
) -> None:
    """Measure the CPU path against its budgets: multiples of a peer's speed, medians of alternating rounds.

    Rows without a budget show this machine's limits.
    """
    results: list[RowResult] = []
    missing: set[str] = set()
    for row in (*budget_rows(), *limit_rows()):
        if only in row.name:
            try:
                results.append(measure(row, seconds))
            except MissingPeerError as error:
                missing.add(str(error))
    if as_json:
        rows: list[dict[str, Any]] = [r.to_dict() | {"met": r.met} for r in results]
        about = {"isa": native.isa(), "torch": torch.__version__, "rows": rows, "missing": sorted(missing)}
        print(json.dumps(about, indent=1))
        return
    Console().print(_printed(results))
    for peer in sorted(missing):
        Console().print(f"not installed: {peer}", markup=False)


if __name__ == "__main__":
    typer.run(main)
