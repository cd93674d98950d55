"""The sections of the checks, and each run in a process of its own, since after a fault a CUDA process is lost."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .case_checks import case_checks
from .compile_checks import compile_checks
from .emulator_checks import emulator_checks
from .graph_checks import graph_checks
from .other_checks import other_checks
from .outcomes import FAILED, Check, NotHereError, Outcome, Setup, outcomes_in, why_not
from .sanitizer_checks import sanitizer_checks
from .speed import speed_checks
from .stream_checks import stream_checks

__all__ = ["SECTIONS", "checks_of", "run_apart"]

KINDS: dict[str, Callable[[Setup, str], Iterator[Check]]] = {
    "cases": case_checks,
    "others": other_checks,
    "emulator": emulator_checks,
    "graphs": graph_checks,
    "streams": stream_checks,
    "compile": compile_checks,
    "sanitizer": sanitizer_checks,
    "speed": speed_checks,
}
ALSO_REFERENCE = ("cases", "others")
"""What the plain torch operations are checked in too: they make tensors as they go, which no capture allows."""
SECTIONS = [f"{kind}/{backend}" for kind in KINDS for backend in ("triton", "native")]
SECTIONS += [f"{kind}/reference" for kind in ALSO_REFERENCE]
SECONDS = 3600
"""Of one section."""


def _not_here(reason: str) -> None:
    raise NotHereError(reason)


def checks_of(section: str, setup: Setup) -> Iterator[Check]:
    """The checks of a section; of a backend that cannot run here, one that says so."""
    kind, _, backend = section.partition("/")
    reason = why_not(backend, setup.device)
    if reason is None:
        yield from KINDS[kind](setup, backend)
    else:
        yield Check(section, partial(_not_here, reason), always=True)


def run_apart(section: str, setup: Setup, only: Sequence[str] = ()) -> list[Outcome]:
    """Run a section in another process. If that does not end well, this is a failure beside what it did before."""
    here = str(Path(__file__).with_name("check.py"))
    options = [option for text in only for option in ("--only", text)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes"
        command = [sys.executable, here, "--section", section, "--device", setup.device.type, "--into", str(path)]
        problem = _problem([*command, *options])
        outcomes = outcomes_in(path)
    if problem is None:
        return outcomes
    last = f", after {outcomes[-1].name}" if outcomes else ""
    return [*outcomes, Outcome(section, FAILED, f"{problem}{last}")]


def _problem(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"did not end in {SECONDS} s"
    return f"exit code {done.returncode}: {done.stderr[-400:].strip()}" if done.returncode else None
