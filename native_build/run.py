"""Runs ninja with a log, and words its first error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from . import settings
from .errors import BuildError

__all__ = ["LOG", "first_error", "run_ninja"]

LOG = "build.log"
_ERROR = re.compile(
    r"\berror\b ?:|\bfatal\b ?:? |undefined reference|undefined symbol|cannot find|not found|No such file|"
    r"No space left|Permission denied|cannot allocate|ld returned",
    re.I,
)
_KILLED = re.compile(r"\[code=(?:137|-9|9)\]|^Killed|Killed signal|signal 9|terminated program", re.M)


def run_ninja(ninja: str, folder: Path) -> None:
    """Run ``ninja`` in ``folder``; its output goes to stderr and to the folder's build.log.

    Raises:
        BuildError: a command failed; with its first error and the path of the log.
    """
    log = folder / LOG
    # The compilers' messages in English, for first_error; C.UTF-8 leaves the letters of paths alone.
    environment = os.environ | {"LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    command = [ninja, *settings.jobs()]
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            sys.stderr.write(line)
    if process.returncode:
        target, said = first_error(log.read_text(encoding="utf-8"))
        raise BuildError(f"{target}{said} (all of it: {log})", _remedy(target, said))


def first_error(output: str) -> tuple[str, str]:
    """(what failed, such as "link of _native.so: ", or nothing; the first error) of ninja's output."""
    failed = re.search(r"^FAILED: (?:\[code=-?\d+\] )?(.*?) *\n(.*)\n((?:.*\n?)*)", output, re.M)
    if failed is None:
        lines = [line for line in output.splitlines() if line.strip()]
        return "", next((line for line in lines if _ERROR.search(line)), lines[-1] if lines else "ninja said nothing")
    said = re.split(r"^(?:FAILED: |ninja: |\[\d+/\d+\])", failed[3], maxsplit=1, flags=re.M)[0]
    if _KILLED.search(failed[0].partition("\n")[0]) or _KILLED.search(said):
        return f"{failed[1]}: ", "the compiler was killed, as it is when memory runs out"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = next((line for line in lines if _ERROR.search(line)), lines[0] if lines else "the command failed silently")
    return f"{failed[1]}: ", found


def _remedy(target: str, said: str) -> str:
    if "killed" in said:
        return "Run the same command with MAX_JOBS=1, which compiles one file at a time in 1 GB."
    if target.startswith("cuda/"):
        return "Repair CUDA's toolkit, or set ROPE_KERNELS_CUDA=0 for CPU kernels alone."
    return "Repair what it names, or choose another C++20 compiler, such as g++ 12 or newer: CXX=g++-12 pip install ."
