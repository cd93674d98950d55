"""A check has a name and a function; what came of it is an outcome. One that fails stops no other."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rope_kernels import use_backend
from rope_kernels.backends import backend_for

__all__ = [
    "FAILED", "NOT_RUN", "PASSED", "RESULTS", "Check", "Figures", "NotHereError", "Outcome", "Setup", "missing_package",
    "run", "why_not",
]  # fmt: skip

RESULTS = PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
_MOST_CHARACTERS = 600
_OWN = ("emulation", "gpu", "rope_kernels", "support")
"""Packages of this checkout: one of them that is not found is a mistake, not a machine that lacks it."""
Figures = dict[str, float | int | str]


class NotHereError(Exception):
    """This machine has not what a check needs; the message says what."""


@dataclass(frozen=True)
class Setup:
    """Where things are checked.

    Attributes:
        device: where the tensors are. "cpu" tries out the checks themselves, and proves nothing about a GPU.
        compiler: torch.compile's backend.
    """

    device: torch.device
    compiler: str = "inductor"


@dataclass(frozen=True)
class Check:
    """``run`` raises where something is wrong; it returns a note, or figures that were measured, or nothing.

    ``always``: whatever names were asked for.
    """

    name: str
    run: Callable[[], str | Figures | None]
    always: bool = False

    def is_wanted(self, only: Sequence[str]) -> bool:
        """Whether the name has one of the texts ``only``, if there are any."""
        return self.always or not only or any(text in self.name for text in only)


@dataclass(frozen=True)
class Outcome:
    """``result`` is PASSED, FAILED or NOT_RUN; ``note`` says why, where it did not pass."""

    name: str
    result: str
    note: str = ""
    figures: Figures = field(default_factory=dict)


def _why(error: Exception) -> str:
    """What was raised, and where: an assert need not have a message."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{Path(place.filename).name}:{place.lineno}: {type(error).__name__}: {str(error) or place.line}"
    return text[:_MOST_CHARACTERS]


def missing_package(error: Exception) -> str | None:
    """What the machine lacks, if that is what the error says: "needs the Python package numpy"."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return f"needs the Python package {name}" if name and name not in _OWN else None


def _outcome(check: Check) -> Outcome:
    try:
        said = check.run()
    except NotHereError as error:
        return Outcome(check.name, NOT_RUN, str(error))
    except Exception as error:
        missing = missing_package(error)
        if missing is not None:
            return Outcome(check.name, NOT_RUN, missing)
        return Outcome(check.name, FAILED, _why(error))
    if isinstance(said, dict):
        return Outcome(check.name, PASSED, figures=said)
    return Outcome(check.name, PASSED, said or "")


def run(checks: Iterable[Check]) -> Iterator[Outcome]:
    """The outcome of each check, as it comes."""
    return map(_outcome, checks)


def why_not(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device, or ``None``."""
    try:
        with use_backend(backend):
            backend_for(device)
    except RuntimeError as error:
        return str(error)
    return None
