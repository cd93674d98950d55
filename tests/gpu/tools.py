"""Programs that watch a process on the GPU: found, or refused here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .outcomes import NotHereError

__all__ = ["found", "last_words", "refuse_if_it_cannot_run"]

_HOMES = ("CUDA_HOME", "CUDA_PATH")
_ANY_KERNEL = "import torch; print(int(torch.ones(4, device='cuda').add_(1).sum()))"
_CHARACTERS = 400
_SECONDS = 300


def found(name: str) -> str:
    """The path of a program of the CUDA toolkit, on PATH or in its folder.

    Raises:
        NotHereError: it is not there.
    """
    homes = [os.environ[variable] for variable in _HOMES if os.environ.get(variable)] or ["/usr/local/cuda"]
    for folders in (os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes)):
        path = shutil.which(name, path=folders)
        if path is not None:
            return path
    raise NotHereError(f"{name} is neither on PATH nor in {', '.join(homes)}")


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The end of what a process said."""
    return " ".join((done.stdout + done.stderr).split())[-_CHARACTERS:]


def refuse_if_it_cannot_run(watched_by: Sequence[str]) -> None:
    """See whether the program with its options, ``watched_by``, runs a process that has nothing of ours.

    Raises:
        NotHereError: it does not: this machine refuses it, and the message has what it said.
    """
    command = [*watched_by, sys.executable, "-c", _ANY_KERNEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotHereError(f"{Path(watched_by[0]).name} does not end here, without our kernels either") from None
    if done.returncode:
        name = Path(watched_by[0]).name
        raise NotHereError(f"{name} cannot run here, without our kernels either: {last_words(done)}")
