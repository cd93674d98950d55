"""Runs sections in processes of their own, a few at a time: after a fault a CUDA process is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .run_file import RunFile
from .sections import needs_the_gpu_alone

__all__ = ["Plan", "run_sections"]

POLL = 0.05
"""Seconds between two looks at the processes."""
SAID = 400
"""Characters of what a process that failed said last."""


@dataclass(frozen=True)
class Plan:
    """How sections are run.

    Attributes:
        device: "cuda" or "cpu".
        only: the texts of ``--only``.
        jobs: how many run at a time. Those that measure run after all others, one at a time.
        seconds: when whatever is left is stopped.
        ended: called with the name of each section that has ended.
    """

    device: str
    only: Sequence[str] = ()
    jobs: int = 1
    seconds: float = 3600.0
    ended: Callable[[str], None] = lambda section: None


@dataclass
class _Process:
    """A section that runs. Its process begins a session, so that what it starts can be ended with it."""

    section: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    begin: float = field(default_factory=time.monotonic)

    def problem(self) -> str | None:
        code = self.process.returncode
        if not code:
            return None
        self.errors.seek(0)
        return f"exit code {code}: {self.errors.read().decode(errors='replace')[-SAID:].strip()}"

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def seconds(self) -> float:
        return time.monotonic() - self.begin


def run_sections(sections: Sequence[str], plan: Plan, file: RunFile) -> None:
    """Run sections; all that comes of them is in ``file``.

    A section whose process fails or is stopped has a problem in the file beside what it did before. Those that run are
    ended when this raises, as it does on a signal.
    """
    end = time.monotonic() + plan.seconds
    alone = [name for name in sections if needs_the_gpu_alone(name)]
    _run(deque(name for name in sections if name not in alone), plan.jobs, plan, file, end)
    _run(deque(alone), 1, plan, file, end)


def _run(waiting: deque[str], jobs: int, plan: Plan, file: RunFile, end: float) -> None:
    running: list[_Process] = []

    def ended(section: str, seconds: float, problem: str | None) -> None:
        if problem is not None:
            file.end_section(section, seconds, problem)
        plan.ended(section)

    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < jobs:
                running.append(_started(waiting.popleft(), jobs, plan, file))
            time.sleep(POLL)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                ended(one.section, one.seconds(), one.problem())
    finally:
        for one in running:
            one.stop()
    for one in running:
        ended(one.section, one.seconds(), f"stopped, {plan.seconds:g} s after the command began")
    for section in waiting:
        ended(section, 0.0, f"not begun within {plan.seconds:g} s")


def _started(section: str, jobs: int, plan: Plan, file: RunFile) -> _Process:
    check = str(Path(__file__).with_name("check.py"))
    command = [sys.executable, check, "--section", section, "--device", plan.device, "--into", str(file.path)]
    command += [option for text in plan.only for option in ("--only", text)]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (read when the process has ended)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
    )
    return _Process(section, process, errors)
