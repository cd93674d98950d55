"""The report as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .outcomes import FAILED, NOT_RUN, RESULTS

__all__ = ["as_text"]

SPEED_COLUMNS = {
    "out= us": lambda row: f"{1e3 * row['out_ms']:.2f}",
    "copy us": lambda row: f"{1e3 * row['copy_ms']:.2f}",
    "out= / copy": lambda row: f"{row['out_time_over_copy']:.2f}",
    "out= GB/s": lambda row: f"{row['out_gb_per_s']:.0f}",
    "in place us": lambda row: f"{1e3 * row['in_place_ms']:.2f}",
    "pass us": lambda row: f"{1e3 * row['pass_ms']:.2f}",
    "in place / pass": lambda row: f"{row['in_place_time_over_pass']:.2f}",
    "in place GB/s": lambda row: f"{row['in_place_gb_per_s']:.0f}",
}


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        rest = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *rest))


def as_text(found: dict[str, Any]) -> str:
    """A :func:`gpu.results.report` as tables of sections, speed and profiles, and what failed."""
    checks = found["checks"]
    counts = [
        [name, *(str(values[key]) for key in (*RESULTS, "seconds"))] for name, values in checks["sections"].items()
    ]
    lines = [str(found.get("gpu")), "", *_table([["section", *RESULTS, "s"], *counts]), ""]
    if found["speed"]["rows"]:
        measured = [[row["name"], *(value(row) for value in SPEED_COLUMNS.values())] for row in found["speed"]["rows"]]
        lines += [*_table([["measured", *SPEED_COLUMNS], *measured]), "", found["speed"]["note"], ""]
    for row in found["profile"]:
        lines += [f"{row['name']}: {name} {value}" for name, value in row.items() if name != "name"]
    for backend, notes in checks["agreement_with_emulator"].items():
        said = ", ".join(f"{count} {note}" for note, count in notes.items())
        lines.append(f"{backend} and the emulator agree: {said}")
    lines += [f"{NOT_RUN} ({count}): {reason}" for reason, count in checks["not_run_because"].items()]
    lines += [f"{FAILED}: {failure['name']}: {failure['why']}" for failure in checks["first_failures"]]
    return "\n".join(lines)
