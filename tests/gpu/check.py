"""All that a GPU can tell: ``python3 tests/gpu/check.py``, also in a checkout that is not installed.

The case list on the device, beside the emulator, in CUDA graphs, on streams, under torch.compile and compute-sanitizer;
then how fast it is. Without a GPU it says so. The exit code is 1 if a check failed.

Every outcome is a line of a file as soon as it is there. ``check.py merge FILE...`` makes one report of the files of
several commands, such as one of each part, or of one that was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.outcomes import FAILED, Setup
from gpu.printing import as_text
from gpu.results import FOLDER, ROOT, facts_of, gpus_listed, report, write
from gpu.run_file import DifferentRunsError, Run, RunFile, read_run
from gpu.sections import PARTS, SECTIONS, checks_of, chosen_sections
from gpu.side_by_side import Plan, run_sections

CUDA, CPU = "cuda", "cpu"


def no_gpu() -> str | None:
    """Why nothing can be checked, or ``None``."""
    if torch.cuda.is_available() and torch.version.cuda:
        return None
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"there is no CUDA GPU that torch can use (torch {torch.__version__}, built {built}): nothing was checked"


def setup_of(device: str) -> Setup:
    """On the CPU the compiler is left out of torch.compile: it would be the CPU's."""
    if device == CPU:
        return Setup(torch.device("cpu"), "aot_eager")
    return Setup(torch.device("cuda", torch.cuda.current_device()))


def parser() -> argparse.ArgumentParser:
    """The options of the command and of ``merge``."""
    made = argparse.ArgumentParser(description="Check the kernels on this machine's GPU and measure them.")
    add = made.add_argument
    add("--part", action="append", default=[], choices=PARTS, help="a part of the checks; repeatable")
    add("--section", action="append", default=[], help="sections that begin so, such as graphs; repeatable")
    add("--only", action="append", default=[], help="checks with this text in their name; repeatable")
    add("--device", choices=(CUDA, CPU), default=CUDA, help="cpu tries out the checks, and says nothing about a GPU")
    add("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="sections at a time; what measures runs alone")
    add("--seconds", type=float, default=3600.0, help="what has not ended by then is stopped, and a failure")
    add(
        "--outcomes",
        type=Path,
        help="the file of the run, or of one to go on with; by default a new one in build/gpu",
    )
    add("--commit", help="what is checked, where there is no git")
    add("--into", type=Path, help=argparse.SUPPRESS)  # run the sections here, in this process, into this file
    _add_report_options(made)
    merge = made.add_subparsers(dest="command").add_parser("merge", help="one report of the files of several runs")
    merge.add_argument("files", nargs="+", type=Path)
    _add_report_options(merge)
    return made


def _add_report_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="print the report as one object")
    made.add_argument("--results", type=Path, default=FOLDER, help="folder of the report of a whole run on a GPU")


def refuse(reason: str, as_json: bool) -> int:
    """Say why nothing is checked; an error where there is a GPU that torch cannot use."""
    print(json.dumps({"gpu": None, "reason": reason}) if as_json else reason)
    listed = gpus_listed()
    if listed:
        print(f"but nvidia-smi lists {listed}: install a torch for its CUDA", file=sys.stderr)
    return 1 if listed else 0


def conclude(files: Sequence[Path], asked: argparse.Namespace) -> int:
    """Print the report of these files, and write it if it is a whole run on a GPU; the exit code."""
    try:
        read = read_run(files)
    except (DifferentRunsError, OSError) as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 2
    found = report(read.facts, read.sections)
    print(json.dumps(found, indent=1) if asked.json else as_text(found))
    missing = [name for name in SECTIONS if name not in {section.name for section in read.sections}]
    if missing:
        print(f"no report is written without {', '.join(missing)}", file=sys.stderr)
    elif _is_whole(read):
        print(f"written to {write(found, asked.results)}", file=sys.stderr)
    return 1 if found["checks"]["total"][FAILED] else 0


def _is_whole(read: Run) -> bool:
    return not read.is_partial and "compute_capability" in read.facts


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def check(asked: argparse.Namespace, chosen: Sequence[str]) -> int:
    """Run the chosen sections; the exit code."""
    path = asked.outcomes or ROOT / "build" / "gpu" / f"{datetime.now():%Y-%m-%d-%H%M%S}.jsonl"
    file = RunFile(path)
    file.begin(facts_of(setup_of(asked.device).device, asked.commit), asked.only)

    def progress(section: str) -> None:
        for ended in (one for one in read_run([path]).sections if one.name == section):
            counts = ", ".join(f"{count} {result}" for result, count in ended.counts().items())
            print(f"{section}: {counts}, {ended.seconds:.0f} s", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, _stop)
    print(f"outcomes are written to {path}", file=sys.stderr, flush=True)
    run_sections(chosen, Plan(asked.device, asked.only, max(1, asked.jobs), asked.seconds, progress), file)
    if asked.only and not any(section.outcomes for section in read_run([path]).sections):
        print(f"check.py: --only: got {asked.only}, which is in no check's name", file=sys.stderr)
        return 2
    return conclude([path], asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the kernels on this machine's GPU and measure them."""
    options = parser()
    asked = options.parse_args(arguments)
    if asked.command == "merge":
        return conclude(asked.files, asked)
    chosen = chosen_sections(asked.part, asked.section)
    if not chosen:
        options.error(f"--section: got {asked.section}, allowed are {', '.join(SECTIONS)}")
    reason = no_gpu() if asked.device == CUDA else None
    if reason is not None:
        return refuse(reason, asked.json)
    if asked.into is not None:
        for name in chosen:
            wanted = [one for one in checks_of(name, setup_of(asked.device)) if one.is_wanted(asked.only)]
            RunFile(asked.into).record(name, wanted)
        return 0
    return check(asked, chosen)


if __name__ == "__main__":
    sys.exit(main())
