"""A check has a name and a function; what came of it is an outcome. One that fails stops no other."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from rope_kernels import use_backend
from rope_kernels.backends import backend_for

__all__ = [
    "FAILED", "NOT_RUN", "PASSED", "RESULTS", "Check", "Figures", "NotHereError", "Outcome", "Setup", "outcomes_in",
    "record", "run", "why_not",
]  # fmt: skip

RESULTS = PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
_MOST_CHARACTERS = 600
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


def _outcome(check: Check) -> Outcome:
    try:
        said = check.run()
    except NotHereError as error:
        return Outcome(check.name, NOT_RUN, str(error))
    except Exception as error:
        return Outcome(check.name, FAILED, _why(error))
    if isinstance(said, dict):
        return Outcome(check.name, PASSED, figures=said)
    return Outcome(check.name, PASSED, said or "")


def run(checks: Iterable[Check], only: Sequence[str] = ()) -> Iterator[Outcome]:
    """The outcome of each check whose name has one of the texts ``only``, or of all."""
    for check in checks:
        if check.always or not only or any(text in check.name for text in only):
            yield _outcome(check)


def record(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write each outcome to a line of ``path`` as soon as there is one."""
    with path.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            print(json.dumps(asdict(outcome)), file=file, flush=True)


def outcomes_in(path: Path) -> list[Outcome]:
    """What :func:`record` wrote, if it came so far."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def why_not(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device, or ``None``."""
    try:
        with use_backend(backend):
            backend_for(device)
    except RuntimeError as error:
        return str(error)
    return None
