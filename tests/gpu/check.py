"""All that a GPU can tell: ``python tests/gpu/check.py [--json] [--only TEXT] [--section NAME] [--device cuda|cpu]``.

The case list on the device, beside the emulator, in CUDA graphs, on streams, under torch.compile and compute-sanitizer;
then how fast it is. Without a GPU it says so. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import json
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.outcomes import FAILED, NOT_RUN, Setup, record, run
from gpu.results import FOLDER, Section, facts_of, gpus_listed, report, write
from gpu.sections import SECTIONS, checks_of, run_apart


class Kind(str, Enum):
    """Where to check."""

    cuda = "cuda"
    cpu = "cpu"


def no_gpu() -> str | None:
    """Why nothing can be checked, or ``None``."""
    if torch.cuda.is_available() and torch.version.cuda:
        return None
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"there is no CUDA GPU that torch can use (torch {torch.__version__}, built {built}): nothing was checked"


def setup_of(device: Kind) -> Setup:
    """On the CPU the compiler is left out of torch.compile: it would be the CPU's."""
    if device is Kind.cpu:
        return Setup(torch.device("cpu"), "aot_eager")
    return Setup(torch.device("cuda", torch.cuda.current_device()))


def printed(found: dict[str, Any], console: Console) -> None:
    """The tables of sections and speed, and what failed."""
    checks = found["checks"]
    table = Table("section", "passed", "failed", "not run", "s", title=found["gpu"])
    for name, counts in checks["sections"].items():
        table.add_row(name, *(str(counts[key]) for key in ("passed", "failed", "not run", "seconds")))
    console.print(table)
    rows = found["speed"]["rows"]
    if rows:
        speed = Table("measured", "out= GB/s", "in place GB/s", "copy GB/s", "out= time / copy", title="bf16, cold L2")
        for row in rows:
            rates = (f"{row[key]:.0f}" for key in ("out_gb_per_s", "in_place_gb_per_s", "copy_gb_per_s"))
            speed.add_row(row["name"], *rates, f"{row['out_time_over_copy']:.2f}")
        console.print(speed)
    for backend, counts in checks["agreement_with_emulator"].items():
        said = ", ".join(f"{count} {note}" for note, count in counts.items())
        console.print(f"{backend} and the emulator agree: {said}")
    for reason, count in checks["not_run_because"].items():
        console.print(f"{NOT_RUN} ({count}): {reason}", markup=False, highlight=False)
    for failure in checks["first_failures"]:
        console.print(f"{FAILED}: {failure['name']}: {failure['why']}", markup=False, highlight=False)


def all_sections(chosen: list[str], setup: Setup, only: list[str], progress: Console) -> list[Section]:
    """Run sections one after the other."""
    done = []
    for i, name in enumerate(chosen, 1):
        start = time.monotonic()
        section = Section(name, run_apart(name, setup, only), time.monotonic() - start)
        done.append(section)
        counts = ", ".join(f"{count} {result}" for result, count in section.counts().items())
        progress.print(f"{i}/{len(chosen)} {name}: {counts}", highlight=False)
    return done


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print the report as one object")] = False,
    only: Annotated[list[str], typer.Option(help="checks with this text in their name; repeatable")] = [],  # noqa: B006
    section: Annotated[list[str], typer.Option(help="sections that begin so, such as graphs; repeatable")] = [],  # noqa: B006
    device: Annotated[Kind, typer.Option(help="cpu tries out the checks, and says nothing about a GPU")] = Kind.cuda,
    results: Annotated[Path, typer.Option(help="folder of the report of a whole run on a GPU")] = FOLDER,
    into: Annotated[Path | None, typer.Option(hidden=True, help="run here, outcomes as lines of this file")] = None,
) -> None:
    """Check the kernels on this machine's GPU and measure them."""
    chosen = [name for name in SECTIONS if not section or any(name.startswith(text) for text in section)]
    if not chosen:
        raise typer.BadParameter(f"got {section}, allowed are {', '.join(SECTIONS)}", param_hint="--section")
    reason = no_gpu() if device is Kind.cuda else None
    if reason is not None:
        print(json.dumps({"gpu": None, "reason": reason}) if as_json else reason)
        listed = gpus_listed()
        if listed:
            print(f"but nvidia-smi lists {listed}: install a torch for its CUDA", file=sys.stderr)
        raise typer.Exit(1 if listed else 0)
    setup = setup_of(device)
    if into is not None:
        record((outcome for name in chosen for outcome in run(checks_of(name, setup), only)), into)
        return
    sections = all_sections(chosen, setup, only, Console(stderr=True))
    found = report(facts_of(setup.device), sections)
    if not any(found["checks"]["total"].values()):
        raise typer.BadParameter(f"got {only}, which is in no check's name", param_hint="--only")
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        printed(found, Console())
    if device is Kind.cuda and not only and not section:
        print(f"written to {write(found, results)}", file=sys.stderr)
    raise typer.Exit(1 if found["checks"]["total"][FAILED] else 0)


if __name__ == "__main__":
    typer.run(main)
