"""Read the data file that pytest-benchmark wrote for a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from ..rows.row import RowResult

__all__ = ["DATA", "RESULTS", "Run", "read"]

DATA = Path(__file__).parents[2] / "build" / "benchmark.json"
RESULTS = Path(__file__).parents[1] / "results"
_NOT_IN_NAMES = r"\((r|tm)\)|\b(processor|cpu)\b|[^a-z0-9]"


@dataclass(frozen=True)
class Run:
    """The measurements of a run.

    Attributes:
        results: by name.
        missing: the reason why a row was not measured, by the row's name.
        records: results that are not timed: "errors", "saved", "static".
        environment: versions and processor, as ``rope-kernels info --json`` has them, and "isa".
        commit: "id", "dirty" and "time".
        command: the command line of the run.
        row_seconds: the time of a row's alternating calls.
    """

    results: dict[str, RowResult]
    missing: dict[str, str]
    records: dict[str, Any]
    environment: dict[str, Any]
    commit: dict[str, Any]
    command: str
    row_seconds: float

    @property
    def folder(self) -> Path:
        """The folder of the run's processor in ``benchmarks/results``, which may not exist."""
        words = re.sub(_NOT_IN_NAMES, " ", str(self.environment["processor"]).lower()).split()
        return RESULTS / "-".join(words)

    def of(self, *groups: str, **facts: Any) -> Iterator[RowResult]:
        """The results of these groups (all groups, if none is named) that have these facts."""
        for result in self.results.values():
            fits = all(result.facts.get(key) == value for key, value in facts.items())
            if fits and (not groups or result.group in groups):
                yield result


def read(path: Path = DATA) -> Run:
    """Read a file written by ``pytest benchmarks --benchmark-json``.

    Raises:
        typer.BadParameter: the file is missing, or is no data file of a run; a command ends with exit code 2.
    """
    if not path.exists():
        raise typer.BadParameter(f"{path}: there is no such file; `make bench` writes {DATA}", param_hint="DATA")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(RowResult)}
        rows = [{key: entry["extra_info"][key] for key in names} for entry in data["benchmarks"]]
        return Run(
            {row["name"]: RowResult(**row) for row in rows}, data["missing"], data["records"],
            data["machine_info"]["environment"], data["commit_info"], data["command"], data["row_seconds"],
        )  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        reason = f"{path}: not a file that `make bench` writes: {type(error).__name__}: {error}"
        raise typer.BadParameter(reason, param_hint="DATA") from error
