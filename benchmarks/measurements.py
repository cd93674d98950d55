"""The one data file of a run, as pytest-benchmark wrote it, read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from rows import Result

__all__ = ["DATA", "Run", "read"]

DATA = Path(__file__).parent.parent / "build" / "benchmark.json"


@dataclass(frozen=True)
class Run:
    """What a run measured.

    Attributes:
        results: by name.
        missing: why a row was not measured, by its name.
        records: what is not timed: "errors", "saved", "static".
        environment: versions and processor, as ``rope-kernels info --json`` has them, and "isa".
        commit: "id", "dirty" and "time".
        command: what ran.
        row_seconds: of alternating calls per row.
    """

    results: dict[str, Result]
    missing: dict[str, str]
    records: dict[str, Any]
    environment: dict[str, Any]
    commit: dict[str, Any]
    command: str
    row_seconds: float

    def of(self, *questions: str, **facts: Any) -> Iterator[Result]:
        """Results of these tables (any, if none is named) whose facts are these."""
        for result in self.results.values():
            fits = all(result.facts.get(key) == value for key, value in facts.items())
            if fits and (not questions or result.question in questions):
                yield result


def read(path: Path = DATA) -> Run:
    """Read a file of ``pytest benchmarks --benchmark-json``.

    Raises:
        typer.BadParameter: there is none, or it is of something else; a command ends with exit code 2.
    """
    if not path.exists():
        raise typer.BadParameter(f"{path}: there is no such file; `make bench` writes {DATA}", param_hint="DATA")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Result)}
        rows = [{key: entry["extra_info"][key] for key in names} for entry in data["benchmarks"]]
        return Run(
            {row["name"]: Result(**row) for row in rows}, data["missing"], data["records"],
            data["machine_info"]["environment"], data["commit_info"], data["command"], data["row_seconds"],
        )  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        reason = f"{path}: not a file that `make bench` writes: {type(error).__name__}: {error}"
        raise typer.BadParameter(reason, param_hint="DATA") from error
