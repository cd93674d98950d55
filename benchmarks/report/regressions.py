"""Compare a run with the committed baseline of its processor: ``python -m benchmarks.report.regressions``.

Ratios are compared, never times. A row is suspect if its ratio is below the baseline's by more than the noise of both
runs, which is the middle half of their rounds. Suspect rows are measured again; a row has regressed if the median of
all its runs is too low as well. Exit codes: 0 no row has regressed; 1 a row has.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..rows.row import RowResult
from .measurements import DATA, RESULTS, Run, read

__all__ = ["Change", "Entry", "baseline_of", "changes", "confirmed"]

BASELINE = "baseline.json"
REPEATS = 2
_MACHINE = ("processor", "isa", "cores", "torch")


@dataclass(frozen=True)
class Entry:
    """The ratio of a row, and its noise relative to the ratio."""

    speed: float
    noise: float


@dataclass(frozen=True)
class Change:
    """A row in the baseline and now."""

    name: str
    before: Entry
    now: Entry

    @property
    def relative(self) -> float:
        """Relative to the baseline; negative if we became slower."""
        return self.now.speed / self.before.speed - 1

    @property
    def allowed(self) -> float:
        """How much slower noise can make a row: the noise of both runs, taken as independent."""
        return min(math.hypot(self.before.noise, self.now.noise), 0.99)

    @property
    def is_slower(self) -> bool:
        """Whether the row is slower by more than the noise."""
        return self.relative < -self.allowed


def baseline_of(runs: Iterable[Run]) -> dict[str, Any]:
    """The baseline of one or several runs: medians, with the larger of the runs' noise and the range between them."""
    runs = list(runs)
    rows = {}
    for name in sorted(set.intersection(*(set(run.results) for run in runs))):
        found = [run.results[name] for run in runs]
        speeds = [result.speed for result in found]
        speed = statistics.median(speeds)
        noise = max([(max(speeds) - min(speeds)) / speed, *(result.noise for result in found)])
        rows[name] = {"speed": round(speed, 4), "noise": round(noise, 4)}
    machine = {key: runs[0].environment.get(key) for key in _MACHINE}
    return {"machine": machine, "runs": len(runs), "commit": runs[0].commit["id"], "rows": rows}


def changes(baseline: dict[str, Any], results: dict[str, RowResult]) -> list[Change]:
    """The rows that are in both."""
    return [
        Change(name, Entry(**row), Entry(results[name].speed, results[name].noise))
        for name, row in baseline["rows"].items()
        if name in results
    ]


def confirmed(first: list[Change], again: Callable[[list[str]], dict[str, RowResult]]) -> list[Change]:
    """The rows that are slower in the median of all runs, not only in the first."""
    suspects = [row for row in first if row.is_slower]
    if not suspects:
        return []
    more = [again([row.name for row in suspects]) for _ in range(REPEATS)]
    found = []
    for row in suspects:
        runs = [row.now, *(Entry(r[row.name].speed, r[row.name].noise) for r in more if row.name in r)]
        now = Entry(statistics.median(e.speed for e in runs), statistics.median(e.noise for e in runs))
        found.append(Change(row.name, row.before, now))
    return [row for row in found if row.is_slower]


def _measure_again(names: list[str]) -> dict[str, RowResult]:
    with tempfile.TemporaryDirectory() as folder:
        rows, data = Path(folder) / "rows.json", Path(folder) / "data.json"
        rows.write_text(json.dumps(names), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", str(RESULTS.parent), "-q", "--benchmark-quiet",
                   f"--rows={rows}", f"--benchmark-json={data}"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read(data).results


def _print(console: Console, baseline: dict[str, Any], run: Run, rows: list[Change]) -> None:
    differing = [key for key in _MACHINE if baseline["machine"].get(key) != run.environment.get(key)]
    for key in differing:
        here = run.environment.get(key)
        console.print(f"the baseline is from another machine: {key} {baseline['machine'].get(key)}, here {here}")
    table = Table("row", "baseline", "now", "change", "noise allows", title="Speeds as multiples of the peer's")
    for row in sorted(rows, key=lambda row: row.relative + row.allowed):
        style = "red" if row.is_slower else None
        cells = f"{row.before.speed:.2f}x", f"{row.now.speed:.2f}x", f"{row.relative:+.0%}", f"-{row.allowed:.0%}"
        table.add_row(row.name, *cells, style=style)
    console.print(table)
    gone = sorted(baseline["rows"].keys() - run.results.keys())
    for name in gone:
        console.print(f"not measured: {name}: {run.missing.get(name, 'not in this run')}", markup=False)


def main(
    data: Annotated[Path, typer.Argument(help="data file of the run; with --write, of the first run")] = DATA,
    more: Annotated[list[Path] | None, typer.Argument(help="data files of further runs, with --write")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="file to read or write; the processor's own if not given")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="make the baseline from these runs")] = False,
    repeat: Annotated[bool, typer.Option(help="measure suspect rows again")] = True,
) -> None:
    """Compare a run's ratios with the baseline's; exit code 1 if one is lower by more than the noise."""
    run = read(data)
    baseline = baseline or run.folder / BASELINE
    if write:
        made = baseline_of([run, *map(read, more or [])])
        baseline.parent.mkdir(parents=True, exist_ok=True)
        baseline.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        return
    if not baseline.exists():
        others = ", ".join(path.parent.name for path in sorted(baseline.parent.parent.glob(f"*/{BASELINE}"))) or "none"
        reason = f"{baseline}: there is no such file; processors with a baseline: {others}; --write makes one"
        raise typer.BadParameter(reason, param_hint="--baseline")
    known, console = json.loads(baseline.read_text(encoding="utf-8")), Console()
    rows = changes(known, run.results)
    if not rows:
        raise typer.BadParameter(f"{data} and {baseline} have no row in common", param_hint="DATA")
    _print(console, known, run, rows)
    slower = confirmed(rows, _measure_again) if repeat else [row for row in rows if row.is_slower]
    for row in slower:
        speeds = f"{row.now.speed:.2f}x, was {row.before.speed:.2f}x"
        console.print(f"slower: {row.name}: {speeds}; noise allows -{row.allowed:.0%}")
    console.print(f"{len(rows)} rows, {len(slower)} slower than the baseline beyond the noise")
    raise typer.Exit(1 if slower else 0)


if __name__ == "__main__":
    typer.run(main)
