"""What ncu says of the kernel of each shape: the bytes that memory moved, occupancy, registers, time."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .outcomes import Check, Figures, NotHereError, Setup
from .speed import SHAPES, named
from .tools import found, last_words

__all__ = ["launches_in", "profile_checks"]

METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread", "launch__grid_size", "launch__block_size",
)  # fmt: skip
SECONDS = 480


def command(ncu: str, backend: str) -> list[str]:
    """ncu over the calls of profiled.py. The clocks stay as they are: changing them needs a right of its own."""
    options = ["--csv", "--clock-control", "none", "--print-units", "base", "--kernel-name", "regex:rotate"]
    return [ncu, *options, "--metrics", ",".join(METRICS), *_target(backend)]


def _target(backend: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("profiled.py")), backend]


def launches_in(text: str) -> list[Figures]:
    """The metrics of each launch, from what ncu prints: a row of CSV for each, between lines of its own."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    launches: dict[str, Figures] = {}
    for row in csv.DictReader(io.StringIO("\n".join(line for line in lines[begin:] if line.startswith('"')))):
        figures = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        try:
            figures[f"{row['Metric Name']} [{row['Metric Unit']}]"] = float(row["Metric Value"].replace(",", ""))
        except ValueError:  # "n/a", of a metric that this GPU does not have
            continue
    return list(launches.values())


def profiled(backend: str) -> list[Figures]:
    """The metrics of one launch of each shape.

    Raises:
        NotHereError: there is no ncu, or it may not read this GPU's counters: without it the same program runs.
    """
    done = subprocess.run(
        command(found("ncu"), backend), capture_output=True, text=True, errors="replace", timeout=SECONDS
    )
    launches = launches_in(done.stdout)
    if launches and all(len(launch) > 1 for launch in launches):
        return launches
    alone = subprocess.run(_target(backend), capture_output=True, text=True, errors="replace", timeout=SECONDS)
    assert alone.returncode == 0, f"without ncu: exit code {alone.returncode}: {last_words(alone)}"
    raise NotHereError(f"ncu measures nothing here: {last_words(done)}")


def by_shape(backend: str) -> Figures:
    """The metrics of every shape, each named after its shape."""
    launches = profiled(backend)
    assert len(launches) == len(SHAPES), f"{len(launches)} launches of {len(SHAPES)} calls"
    return {
        f"{named(*shape)}: {name}": value
        for shape, launch in zip(SHAPES, launches, strict=True)
        for name, value in launch.items()
    }


def profile_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """One run of ncu for one backend. Nothing is asked of the figures."""
    yield Check(f"profile/{backend}/launches", partial(by_shape, backend))
