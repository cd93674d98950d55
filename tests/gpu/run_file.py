"""The file of a run: a line of JSON for everything that happens, at once, so that a killed run keeps what it did.

Several processes append to one file, each line in one write. Several files, of parts of the checks or of repeated ones,
are read as one run: what a later line says of a check replaces what an earlier one said.

    {"run": facts of the machine, "only": texts}            a command begins
    {"section": name, "checks": count}                      a section begins
    {"section": name, "outcome": fields of an Outcome}
    {"section": name, "seconds": time, "problem": text}     a section has ended: well, if the problem is null
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .outcomes import FAILED, RESULTS, Check, Outcome, run

__all__ = ["DifferentRunsError", "Run", "RunFile", "Section", "read_run"]

_SAME = ("gpu", "commit", "versions")
"""The facts that files of one run agree in."""
_NOT_ENDED = "it did not end"


class DifferentRunsError(ValueError):
    """The files are of different GPUs, commits or versions."""


@dataclass(frozen=True)
class Section:
    """A section's outcomes and how long they took."""

    name: str
    outcomes: Sequence[Outcome]
    seconds: float

    def counts(self) -> dict[str, int]:
        """How many passed, failed and were not run."""
        found = Counter(outcome.result for outcome in self.outcomes)
        return {result: found[result] for result in RESULTS}


@dataclass(frozen=True)
class Run:
    """What files say of one run.

    Attributes:
        facts: of the machine; empty if no file has them.
        sections: in the order in which they are first named.
        is_partial: whether some of the checks were left out by ``--only``.
    """

    facts: dict[str, Any]
    sections: list[Section]
    is_partial: bool


class RunFile:
    """Appends to the file of a run.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, facts: dict[str, Any], only: Sequence[str]) -> None:
        """A command begins."""
        self._append(run=facts, only=list(only))

    def record(self, section: str, checks: Sequence[Check]) -> None:
        """Run the checks of a section, and write each outcome as soon as there is one."""
        begin = time.monotonic()
        self._append(section=section, checks=len(checks))
        for outcome in run(checks):
            self._append(section=section, outcome=asdict(outcome))
        self.end_section(section, time.monotonic() - begin, None)

    def end_section(self, section: str, seconds: float, problem: str | None) -> None:
        """A section has ended; early, or was not begun, if there is a problem."""
        self._append(section=section, seconds=round(seconds, 1), problem=problem)

    def _append(self, **line: Any) -> None:
        text = f"{json.dumps(line)}\n".encode()
        with self.path.open("ab", buffering=0) as file:
            if file.tell() and not self._ends_a_line():
                text = b"\n" + text  # after a line that a killed process did not finish
            file.write(text)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"


@dataclass
class _Reading:
    """A section, line by line."""

    name: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    expected: int = 0
    seconds: float = 0.0
    problem: str | None = None

    def take(self, line: dict[str, Any]) -> None:
        if "checks" in line:
            self.expected = max(self.expected, line["checks"])
            self.problem = _NOT_ENDED
            self.outcomes.pop(self.name, None)  # why an earlier run of the section could not run it
        elif "outcome" in line:
            outcome = Outcome(**line["outcome"])
            self.outcomes[outcome.name] = outcome
        else:
            self.seconds += line["seconds"]
            self.problem = line["problem"]

    def section(self) -> Section:
        """A section that ended early, or with too few outcomes, has a failure that says so."""
        outcomes, done = list(self.outcomes.values()), f"{len(self.outcomes)} of {self.expected} checks were made"
        if self.problem is not None:
            last = f", the last was {outcomes[-1].name}" if outcomes else ""
            outcomes.append(Outcome(self.name, FAILED, f"{self.problem}: {done}{last}"))
        elif len(outcomes) < self.expected:
            outcomes.append(Outcome(self.name, FAILED, done))
        return Section(self.name, outcomes, self.seconds)


def _lines(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The lines of files; one that a killed process did not finish is missing among the outcomes, which are counted."""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def read_run(paths: Sequence[Path]) -> Run:
    """The files as one run, later ones after earlier ones.

    Raises:
        DifferentRunsError: they are of different GPUs, commits or versions.
    """
    facts: dict[str, Any] = {}
    read: dict[str, _Reading] = {}
    is_partial = False
    for line in _lines(paths):
        if "run" in line:
            for name in _SAME:
                earlier, now = facts.get(name), line["run"].get(name)
                if facts and earlier != now:
                    raise DifferentRunsError(f"{name}: got {earlier} and {now}, a report is of one")
            facts = line["run"]
            is_partial |= bool(line["only"])
        else:
            read.setdefault(line["section"], _Reading(line["section"])).take(line)
    return Run(facts, [reading.section() for reading in read.values()], is_partial)
