"""compute-sanitizer over a few cases, each tool in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .outcomes import PASSED, Check, Setup
from .run_file import read_run
from .tools import found, last_words, refuse_if_it_cannot_run

__all__ = ["sanitizer_checks"]

TOOLS = ("memcheck", "racecheck")
CASES = (
    "half-float32-inverse", "interleaved_to_half-bfloat16-forward", "head_dim96-half", "view-odd-bfloat16",
    "partial_odd-near", "packed-seq_len-longrope", "mrope_ernie-near", "shape3x33",
)  # fmt: skip
"""Each way that rows are read and written, with tokens past a tile's end, packed sequences and tables."""
FOUND = 86
"""Exit code of a tool that found something."""
SECONDS = 1800


def command(tool: str, sanitizer: str, backend: str, device: str, report: str) -> list[str]:
    """What runs the cases of a backend under a tool."""
    only = [text for case in CASES for way in ("apart", "in place") for text in ("--only", f"/{way}/{case}")]
    check = str(Path(__file__).with_name("check.py"))
    inner = [sys.executable, check, "--section", f"cases/{backend}", "--device", device, "--into", report, *only]
    return [*watching(tool, sanitizer), *inner]


def watching(tool: str, sanitizer: str) -> list[str]:
    """The sanitizer's own part of a command."""
    return [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)]


def check_with(tool: str, backend: str, device: str) -> str:
    """Run the cases under a tool; how many there were.

    Raises:
        NotHereError: there is no compute-sanitizer, or this machine refuses it.
    """
    sanitizer = found("compute-sanitizer")
    # Without torch's cache every tensor is an allocation of its own, which the tool knows the end of.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "outcomes.jsonl"
        done = subprocess.run(
            command(tool, sanitizer, backend, device, str(report)), env=environment, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip
        ran = [one for section in read_run([report]).sections for one in section.outcomes] if report.exists() else []
    if done.returncode and not ran:
        refuse_if_it_cannot_run(watching(tool, sanitizer))
    said = last_words(done)
    assert done.returncode != FOUND, f"{tool} found errors: {said}"
    assert done.returncode == 0, f"exit code {done.returncode}: {said}"
    failed = [outcome for outcome in ran if outcome.result != PASSED]
    assert not failed, f"{failed[0].name}: {failed[0].note}"
    assert len(ran) == 2 * len(CASES), f"{len(ran)} of {2 * len(CASES)} cases were run"
    return f"{len(ran)} cases"


def sanitizer_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """Each tool, for one backend."""
    for tool in TOOLS:
        yield Check(f"sanitizer/{backend}/{tool}", partial(check_with, tool, backend, setup.device.type))
