"""How long a newcomer waits: ``python -m benchmarks.first_steps [--source URL] [--json]``.

Clones the project into an empty home without a package cache, then does the first steps up to an attention layer.
Prints the table of docs/getting-started.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
IN_VENV = ". .venv/bin/activate && "
STEPS = (
    ("`make demo`", "make demo"),
    ("`make demo`, again", "make demo"),
    ("the attention layer of `docs/attention.md`, saved as `layer.py`: `python layer.py`", f"{IN_VENV}python layer.py"),
    ("`rope-kernels explain llama-3.1-8b`", f"{IN_VENV}rope-kernels explain llama-3.1-8b"),
    ("`rope-kernels plot llama-3.1-8b`", f"{IN_VENV}rope-kernels plot llama-3.1-8b"),
    ("`rope-kernels bench`", f"{IN_VENV}rope-kernels bench"),
)
"""A step's name and its shell command."""


def environment(home: Path) -> dict[str, str]:
    """The environment variables of a newcomer: pip's settings are kept, its cache and this .venv are not."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    kept |= {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    folder = str(Path(sys.prefix) / "bin")
    kept["PATH"] = os.pathsep.join(p for p in kept.get("PATH", "").split(os.pathsep) if p != folder)
    return kept | {"HOME": str(home), "PIP_NO_CACHE_DIR": "1"}


def timed(command: str, folder: Path, env: dict[str, str]) -> float:
    """Seconds that a command takes.

    Raises:
        typer.Exit: the command failed; its output was printed.
    """
    start = time.perf_counter()
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        typer.echo(f"{command} failed:\n{done.stdout}{done.stderr}", err=True)
        raise typer.Exit(1)
    return time.perf_counter() - start


def main(
    source: Annotated[str, typer.Option(help="What to clone.")] = str(ROOT),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Time a newcomer's first steps."""
    with tempfile.TemporaryDirectory() as scratch:
        home, clone = Path(scratch, "home"), Path(scratch, "rope-kernels")
        home.mkdir()
        env = environment(home)
        seconds = {"`git clone`": timed(f"git clone -q {source} {clone}", home, env)}
        page = (clone / "docs" / "attention.md").read_text(encoding="utf-8")
        first_block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        assert first_block, "docs/attention.md holds no Python"
        (clone / "layer.py").write_text(first_block[1], encoding="utf-8")
        for name, command in STEPS:
            seconds[name] = timed(command, clone, env)
    if as_json:
        typer.echo(json.dumps(seconds, indent=1))
        return
    typer.echo("| step | seconds |\n|---|---|")
    for name, value in seconds.items():
        typer.echo(f"| {name} | {value:.0f} |")
    typer.echo(f"| all of it | {sum(seconds.values()):.0f} |")


if __name__ == "__main__":
    typer.run(main)
