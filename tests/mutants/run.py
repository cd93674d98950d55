"""Do the tests notice? ``python tests/mutants/run.py [--json] [--only TEXT]...``.

Every mutant goes into a scratch copy of the repository, is built there and tested as `make test` would, until a test
fails. The exit code is 1 if one survives or cannot be built.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.catalogue import MUTANTS
from mutants.mutant import Mutant
from mutants.suites import SUITES

ROOT = Path(__file__).parents[2]
SECONDS = 600
"""Of one stage, after which a mutant counts as noticed: it does not end."""
LIBRARY = "rope_kernels/_native.so"


@dataclass
class Result:
    """What became of a mutant: "killed", "survived" or "not built"; and by which test, or why not."""

    file: str
    why: str
    result: str
    by: str
    seconds: float


def scratch_copy(folder: Path) -> Path:
    """The repository, uncommitted changes included, with the installed extension."""
    copy = folder / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    if (ROOT / LIBRARY).is_file():
        shutil.copy2(ROOT / LIBRARY, copy / LIBRARY)
    return copy


def run(copy: Path, command: Sequence[str]) -> tuple[int | None, str]:
    """(exit code, output); ``None`` where it did not end."""
    tests, tools = copy / "tests", Path(sys.executable).parent
    environment = os.environ | {
        "PYTHONPATH": f"{copy}{os.pathsep}{tests}",
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
        "TRITON_CACHE_DIR": str(copy / ".triton_cache"),
        "ROPE_KERNELS_CUDA": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def tested(copy: Path, area: str) -> tuple[str, str]:
    """("killed", the test), ("survived", "") or ("not built", the compiler's words)."""
    for stage in SUITES[area]:
        for command in stage.builds:
            code, output = run(copy, command)
            if code:
                return "not built", output[-3000:]
        code, output = run(copy, [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *stage.tests])
        if code is None:
            return "killed", f"does not end in {SECONDS} s"
        if code < 0:
            return "killed", f"Python ends by {signal.Signals(-code).name}"
        if code == 1:
            failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.M)
            return "killed", failed[1].rpartition("/")[2] if failed else output[-300:]
        if code:
            return "not built", output[-3000:]
    return "survived", ""


def result_of(copy: Path, mutant: Mutant) -> Result:
    """Apply a mutant, test it, and put the file back."""
    path = copy / mutant.file
    original, start = path.read_text(), time.monotonic()
    path.write_text(mutant.applied(copy))
    try:
        result, by = tested(copy, mutant.area)
    finally:
        path.write_text(original)  # newer than what was built
    return Result(mutant.file, mutant.why, result, by, time.monotonic() - start)


def check_sound(copy: Path, areas: set[str], console: Console) -> None:
    """Without a mutant all tests must pass, or nothing would follow from a failure."""
    for area in sorted(areas):
        result, by = tested(copy, area)
        if result != "survived":
            console.print(f"the tests of {area} fail without a mutant: {by}")
            raise typer.Exit(2)


def printed(results: list[Result]) -> Table:
    """All results, and the sum."""
    killed = sum(result.result == "killed" for result in results)
    table = Table("file", "what is wrong", "result", "by", "s", title=f"{killed} of {len(results)} mutants killed")
    for r in results:
        table.add_row(Path(r.file).name, r.why, r.result, r.by, f"{r.seconds:.0f}")
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print a list of objects")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="mutants with such a text in area, kind, file or description")
    ] = None,
) -> None:
    """Run the tests against every mutant."""
    chosen = [m for m in MUTANTS if any(text in f"{m.area} {m.kind} {m.file} {m.why}" for text in only or [""])]
    if not chosen:
        raise typer.BadParameter(f"got {only!r}, which is in no mutant", param_hint="--only")
    console, results = Console(stderr=True), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = scratch_copy(Path(folder))
        check_sound(copy, {mutant.area for mutant in chosen}, console)
        for i, mutant in enumerate(chosen, 1):
            results.append(result_of(copy, mutant))
            last = results[-1]
            console.print(f"{i}/{len(chosen)} {last.result}: {Path(mutant.file).name}: {mutant.why}", highlight=False)
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        Console().print(printed(results))
    survivors = [r for r in results if r.result != "killed"]
    for r in survivors:
        console.print(f"{r.result}: {r.file}: {r.why} {r.by}", highlight=False)
    raise typer.Exit(1 if survivors else 0)


if __name__ == "__main__":
    typer.run(main)
