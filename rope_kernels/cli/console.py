"""Shared by the commands: messages and exit codes instead of tracebacks, progress bars, JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["LacksError", "check_png", "device_and_backend", "errors_as_exit_codes", "print_json", "progress", "written"]


class LacksError(RuntimeError):
    """This machine lacks something that the command needs; the message says what."""


def check_png(path: Path, option: str) -> None:
    """Raise unless a PNG file can be drawn to ``path``, the value of ``option``."""
    from ..environment import version_of

    if version_of("matplotlib") is None:
        raise LacksError(f"{option}: matplotlib is not installed; pip install matplotlib")
    if not path.parent.is_dir():
        raise LacksError(f"{option}: there is no folder {path.parent}")
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"got {path.name!r}, a name that ends in .png is needed", param_hint=option)


def written(path: Path, option: str, draw: Callable[[], None]) -> None:
    """Draw to ``path`` and print so, or raise :class:`LacksError`."""
    try:
        draw()
    except OSError as error:
        raise LacksError(f"{option}: {path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}", err=True)


def device_and_backend(name: str | None) -> tuple[Any, str]:
    """The torch device called ``name``, or else CUDA or the CPU, and the name of the backend that runs there."""
    import torch

    from ..backends import backend_for

    if name not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"got {name!r}, allowed are cpu and cuda", param_hint="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise LacksError("--device: torch finds no CUDA device")
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        module = backend_for(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ROPE_KERNELS_BACKEND") from error
    except RuntimeError as error:
        raise LacksError(str(error)) from error
    return device, module.__name__.split(".")[2]


@contextmanager
def progress(what: str, total: int, hidden: bool) -> Iterator[Any]:
    """A progress bar on a terminal. Yields a function to call after every step."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Report an expected error by a line on stderr and an exit code, a warning by a line on stderr."""
    from ..errors import RopeConfigError, RopeConfigWarning
    from ..measuring.catalog import SourceError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RopeConfigWarning)
        try:
            yield
        except (RopeConfigError, SourceError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except LacksError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        finally:
            for warning in caught:
                typer.echo(f"warning: {warning.message}", err=True)


def print_json(value: object) -> None:
    """Print a command's results as JSON."""
    typer.echo(json.dumps(value, indent=2))
