"""The ``rope-kernels`` command: ``info``, ``explain``, ``plot``, ``demo``, ``check`` and ``coverage``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ._version import __version__

__all__ = ["app", "main"]

EXIT_CODES = (
    "Exit codes: 0 done; 1 something this machine lacks (a package, a device, a folder to write to); "
    "2 a wrong argument or config; 3 a result of demo or check outside the accuracy contract."
)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
    help="Rotary position embeddings, exact at any position, from a config that is checked.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
ConfigArgument = Annotated[
    str, typer.Argument(help="A config.json, a model directory, or the name of a shipped config.", metavar="CONFIG")
]
LayerType = Annotated[str | None, typer.Option(help="Only these layers, such as full_attention.")]


class _LacksError(RuntimeError):
    """This machine lacks something; the message says what."""


def main() -> None:
    """Run the command line."""
    app(prog_name="rope-kernels")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog=EXIT_CODES)
def info(as_json: AsJson = False) -> None:
    """Show versions, the CUDA device, and which backends can be used, or why not."""
    from .environment import describe
    from .report import info_report

    machine = describe()
    if as_json:
        _print_json(machine)
    else:
        Console().print(info_report(machine))


@app.command(epilog=EXIT_CODES)
def explain(config: ConfigArgument, layer_type: LayerType = None, as_json: AsJson = False) -> None:
    """Show what a model's config means for its rotary embedding, and where every value came from."""
    with _errors_as_exit_codes():
        _, layers = _layers_of(config, layer_type)
    if as_json:
        _print_json({name: _explained(layer) for name, layer in layers.items()})
        return
    console = Console(soft_wrap=True)
    for name, layer in layers.items():
        if len(layers) > 1:
            console.print(f"[bold]{name}[/bold]")
        console.print(layer.explain(), markup=False, highlight=False, end="\n\n" if len(layers) > 1 else "\n")


def _layers_of(source: str, layer_type: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dict of a config.json, and a RopeConfig per layer type, or for the one asked for."""
    from .catalog import load
    from .config import RopeConfig
    from .errors import RopeConfigError

    values = load(source)
    layers = RopeConfig.per_layer(values)
    if layer_type is None:
        return values, layers
    if layer_type not in layers:
        raise RopeConfigError("layer_type", f"got {layer_type!r}, allowed are {', '.join(layers)}")
    return values, {layer_type: layers[layer_type]}


def _explained(layer: Any) -> dict[str, Any]:
    from .explain import effective_context

    return {
        "config": layer.to_dict(),
        "effective_context": effective_context(layer, layer.frequency_params),
        "rotary_dim": layer.rotary_dim,
        "attention_scaling": layer.attention_scaling,
        "inv_freq": layer.inv_freq().tolist(),
        "provenance": dict(layer.provenance),
    }


@app.command(epilog=EXIT_CODES)
def plot(
    config: ConfigArgument,
    output: Annotated[Path | None, typer.Option(help="A PNG file; rope.png if not given, none with --json.")] = None,
    layer_type: LayerType = None,
    as_json: AsJson = False,
) -> None:
    """Draw a config's wavelengths against its context, and its error against the position beside transformers'."""
    from .curves import curves, num_steps
    from .plotting import draw_curves

    path = output or (None if as_json else Path("rope.png"))
    with _errors_as_exit_codes():
        if path is not None:
            _check_png(path, "--output")
        values, layers = _layers_of(config, layer_type)
        with _progress("rotating", len(layers) * num_steps(), hidden=as_json) as advance:
            found = curves(layers, values, advance)
        if path is not None:
            _written(path, "--output", lambda: draw_curves(found, path, Path(config).name))
    if as_json:
        _print_json([asdict(part) for part in found])


@app.command(epilog=EXIT_CODES)
def demo(
    as_json: AsJson = False,
    only: Annotated[list[str] | None, typer.Option(help="A shipped config, by name; may be repeated.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw wavelengths and errors to this PNG file.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one, if not given.")] = None,
) -> None:
    """Rotate q and k of every shipped model at the end of its context, and show errors and times."""
    from .demo import CONTRACT, ROUNDS, cases, measure
    from .demo_serving import serving_rows
    from .environment import describe
    from .report import WIDTH, demo_report, serving_report

    with _errors_as_exit_codes():
        if plot is not None:
            _check_png(plot, "--plot")
        target, backend = _device_and_backend(device)
        todo = cases(only or ())
        with _progress("checking, then timing", len(todo) * (1 + ROUNDS), hidden=as_json) as advance:
            rows = measure(todo, target, backend, advance)
            serving = serving_rows(todo, target)
    machine = describe()
    if as_json:
        results = {"results": [asdict(row) for row in rows], "serving": [asdict(row) for row in serving]}
        _print_json({"machine": machine, "contract": CONTRACT, **results})
    else:
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=WIDTH)
        console.print(demo_report(rows, machine, console.width))
        console.print("", serving_report(serving), sep="\n")
    if plot is not None:
        from .plotting import draw

        with _errors_as_exit_codes():
            _written(plot, "--plot", lambda: draw(plot))
    if any(row.max_error > CONTRACT for row in rows) or any(row.max_error > row.contract for row in serving):
        typer.echo(f"error: a result is outside the accuracy contract of {CONTRACT:.0e}", err=True)
        raise typer.Exit(3)


@app.command(epilog=EXIT_CODES)
def check(as_json: AsJson = False) -> None:
    """Make calls whose results are known exactly on every backend of this machine: types, pairings, layouts, dtypes."""
    from . import check as checking
    from .demo import CONTRACT
    from .environment import describe

    machine = describe()
    todo, where = checking.calls(), checking.targets()
    with _progress("checking", len(todo) * len(where), hidden=as_json) as advance:
        results = checking.run(todo, where, advance)
    if as_json:
        _print_json({"machine": machine, "contract": CONTRACT, "results": checking.to_json(results)})
    else:
        not_run = {name: why for name, why in machine["backends"].items() if why is not None}
        Console().print(checking.report(results, not_run))
    if not checking.passed(results):
        typer.echo(f"error: a result is outside the accuracy contract of {CONTRACT:.0e}", err=True)
        raise typer.Exit(3)


@app.command(epilog=EXIT_CODES)
def coverage(as_json: AsJson = False) -> None:
    """Probe every modeling file of the installed transformers: which rotations the kernels can stand in for."""
    from .integrations.transformers import coverage as probe

    with _errors_as_exit_codes():
        try:
            files = probe.modeling_files()
        except ImportError as error:
            raise _LacksError(f"{error}; pip install transformers") from error
        with _progress("probing", len(files), hidden=as_json) as advance:
            counted = probe.summary(probe.coverage(advance))
    if as_json:
        _print_json(counted)
    else:
        typer.echo(probe.as_text(counted))


def _check_png(path: Path, option: str) -> None:
    from .environment import version_of

    if version_of("matplotlib") is None:
        raise _LacksError(f"{option}: matplotlib is not installed; pip install matplotlib")
    if not path.parent.is_dir():
        raise _LacksError(f"{option}: there is no folder {path.parent}")
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"got {path.name!r}, a name that ends in .png is needed", param_hint=option)


def _written(path: Path, option: str, draw: Callable[[], None]) -> None:
    try:
        draw()
    except OSError as error:
        raise _LacksError(f"{option}: {path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}", err=True)


def _device_and_backend(name: str | None) -> tuple[Any, str]:
    import torch

    from .backends import backend_for

    if name not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"got {name!r}, allowed are cpu and cuda", param_hint="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise _LacksError("--device: torch finds no CUDA device")
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        module = backend_for(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ROPE_KERNELS_BACKEND") from error
    except RuntimeError as error:
        raise _LacksError(str(error)) from error
    return device, module.__name__.rpartition(".")[2].removesuffix("_launch")


@contextmanager
def _progress(what: str, total: int, hidden: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    """Expected errors become a line on stderr and an exit code, warnings a line on stderr."""
    from .catalog import SourceError
    from .errors import RopeConfigError, RopeConfigWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RopeConfigWarning)
        try:
            yield
        except (RopeConfigError, SourceError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except _LacksError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        finally:
            for warning in caught:
                typer.echo(f"warning: {warning.message}", err=True)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
