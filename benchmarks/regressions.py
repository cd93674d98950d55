"""Whether a run is slower than its processor's committed baseline: ``python benchmarks/regressions.py``.

Ratios are compared, never times: a row is suspect where its ratio is below the baseline's by more than both runs'
noise, the middle half of their rounds. What is suspect is measured again, and has regressed where the median of all
its runs is too low as well. Exit codes: 0 nothing has; 1 something has.
"""

from __future__ import annotations

import json
import math
import re
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

from measurements import DATA, Run, read
from rows import Result

__all__ = ["BASELINES", "Comparison", "Entry", "baseline_of", "compared", "confirmed", "path_of"]

BASELINES = Path(__file__).parent / "baselines"
REPEATS = 2
_MACHINE = ("processor", "isa", "cores", "torch")


@dataclass(frozen=True)
class Entry:
    """A row of the baseline: the ratio, and its noise relative to it."""

    speed: float
    noise: float


@dataclass(frozen=True)
class Comparison:
    """One row now and in the baseline."""

    name: str
    before: Entry
    now: Entry

    @property
    def change(self) -> float:
        """Relative to the baseline, negative where we have become slower."""
        return self.now.speed / self.before.speed - 1

    @property
    def allowed(self) -> float:
        """How much slower noise can make a row: both runs', as independent."""
        return min(math.hypot(self.before.noise, self.now.noise), 0.99)

    @property
    def is_slower(self) -> bool:
        """Whether the change goes beyond that."""
        return self.change < -self.allowed


def baseline_of(runs: Iterable[Run]) -> dict[str, Any]:
    """What is committed, of one run or several: medians, and the larger of the runs' noise and their range."""
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


def path_of(run: Run) -> Path:
    """Where the baseline of the run's processor is, if there is one."""
    return BASELINES / f"{re.sub('[^a-z0-9]+', '-', str(run.environment['processor']).lower()).strip('-')}.json"


def compared(baseline: dict[str, Any], results: dict[str, Result]) -> list[Comparison]:
    """The rows that both have."""
    return [
        Comparison(name, Entry(**row), Entry(results[name].speed, results[name].noise))
        for name, row in baseline["rows"].items()
        if name in results
    ]


def confirmed(first: list[Comparison], again: Callable[[list[str]], dict[str, Result]]) -> list[Comparison]:
    """The rows that are slower in the median of all runs, and not in the first alone."""
    suspects = [row for row in first if row.is_slower]
    if not suspects:
        return []
    more = [again([row.name for row in suspects]) for _ in range(REPEATS)]
    found = []
    for row in suspects:
        runs = [row.now, *(Entry(r[row.name].speed, r[row.name].noise) for r in more if row.name in r)]
        now = Entry(statistics.median(e.speed for e in runs), statistics.median(e.noise for e in runs))
        found.append(Comparison(row.name, row.before, now))
    return [row for row in found if row.is_slower]


def _measure_again(names: list[str]) -> dict[str, Result]:
    with tempfile.TemporaryDirectory() as folder:
        rows, data = Path(folder) / "rows.json", Path(folder) / "data.json"
        rows.write_text(json.dumps(names), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", str(BASELINES.parent), "-q", "--benchmark-quiet",
                   f"--rows={rows}", f"--benchmark-json={data}"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read(data).results


def _print(console: Console, baseline: dict[str, Any], run: Run, rows: list[Comparison]) -> None:
    differing = [key for key in _MACHINE if baseline["machine"].get(key) != run.environment.get(key)]
    for key in differing:
        here = run.environment.get(key)
        console.print(f"the baseline is of another machine: {key} {baseline['machine'].get(key)}, here {here}")
    table = Table("row", "baseline", "now", "change", "noise allows", title="Speeds as multiples of the peer's")
    for row in sorted(rows, key=lambda row: row.change + row.allowed):
        style = "red" if row.is_slower else None
        cells = f"{row.before.speed:.2f}x", f"{row.now.speed:.2f}x", f"{row.change:+.0%}", f"-{row.allowed:.0%}"
        table.add_row(row.name, *cells, style=style)
    console.print(table)
    gone = sorted(baseline["rows"].keys() - run.results.keys())
    for name in gone:
        console.print(f"not measured: {name}: {run.missing.get(name, 'the suite does not have it')}", markup=False)


def main(
    data: Annotated[Path, typer.Argument(help="of the run; the first, with --write")] = DATA,
    more: Annotated[list[Path] | None, typer.Argument(help="further runs, with --write")] = None,
    baseline: Annotated[Path | None, typer.Option(help="what to compare with, or write")] = None,
    write: Annotated[bool, typer.Option("--write", help="make these runs the baseline")] = False,
    repeat: Annotated[bool, typer.Option(help="measure again what is suspect")] = True,
) -> None:
    """Compare a run's ratios with the baseline's; exit code 1 where one is lower beyond the noise."""
    run = read(data)
    baseline = baseline or path_of(run)
    if write:
        made = baseline_of([run, *map(read, more or [])])
        baseline.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        return
    if not baseline.exists():
        others = ", ".join(path.name for path in sorted(baseline.parent.glob("*.json"))) or "nothing"
        reason = f"{baseline}: there is none, beside it {others}; --write makes one of quiet runs"
        raise typer.BadParameter(reason, param_hint="--baseline")
    known, console = json.loads(baseline.read_text(encoding="utf-8")), Console()
    rows = compared(known, run.results)
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
