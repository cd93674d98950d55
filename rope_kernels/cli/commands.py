"""The ``rope-kernels`` command: ``info``, ``explain``, ``plot``, ``demo``, ``check``,
``bench``, ``coverage`` and ``vllm``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .._version import __version__
from .console import LacksError, check_png, device_and_backend, errors_as_exit_codes, print_json, progress, written

__all__ = ["app", "main"]

EXIT_CODES = (
    "Exit codes: 0 done; 1 something this machine lacks (a package, a device, a folder to write to); "
    "2 a wrong argument or config; 3 a result of demo, check or bench outside the accuracy contract."
)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
    help="Rotary position embeddings, exact at any position, from a validated config.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
ConfigArgument = Annotated[
    str, typer.Argument(help="A config.json, a model directory, or the name of a shipped config.", metavar="CONFIG")
]
LayerType = Annotated[str | None, typer.Option(help="Only these layers, such as full_attention.")]


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
    """Show versions, the CUDA device, which backends can be used, or why not, and which one the environment chooses."""
    from ..environment import describe
    from .demo_report import info_report

    machine = describe()
    if as_json:
        print_json(machine)
    else:
        Console().print(info_report(machine))
    if machine["error"] is not None:
        typer.echo(f"error: {machine['error']}", err=True)
        raise typer.Exit(1 if machine["ROPE_KERNELS_BACKEND"] in machine["backends"] else 2)


@app.command(epilog=EXIT_CODES)
def explain(config: ConfigArgument, layer_type: LayerType = None, as_json: AsJson = False) -> None:
    """Show what a model's config means for its rotary embedding, and where every value came from."""
    with errors_as_exit_codes():
        _, configs = _configs_of(config, layer_type)
    if as_json:
        print_json({name: _explained(rope_config) for name, rope_config in configs.items()})
        return
    console = Console(soft_wrap=True)
    for name, rope_config in configs.items():
        if len(configs) > 1:
            console.print(f"[bold]{name}[/bold]")
        console.print(rope_config.explain(), markup=False, highlight=False, end="\n\n" if len(configs) > 1 else "\n")


def _configs_of(source: str, layer_type: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dict of a config.json, and its RopeConfig of each layer type, or of ``layer_type`` only."""
    from ..config import RopeConfig
    from ..errors import RopeConfigError
    from ..measuring.catalog import load

    values = load(source)
    configs = RopeConfig.per_layer(values)
    if layer_type is None:
        return values, configs
    if layer_type not in configs:
        raise RopeConfigError("layer_type", f"got {layer_type!r}, allowed are {', '.join(configs)}")
    return values, {layer_type: configs[layer_type]}


def _explained(config: Any) -> dict[str, Any]:
    from ..config.explain import effective_context

    return {
        "config": config.to_dict(),
        "effective_context": effective_context(config, config.frequency_params),
        "rotary_dim": config.rotary_dim,
        "attention_scaling": config.attention_scaling,
        "inv_freq": config.inv_freq().tolist(),
        "provenance": dict(config.provenance),
    }


@app.command(epilog=EXIT_CODES)
def plot(
    config: ConfigArgument,
    output: Annotated[Path | None, typer.Option(help="A PNG file; by default rope.png, none with --json.")] = None,
    layer_type: LayerType = None,
    as_json: AsJson = False,
) -> None:
    """Plot a config's wavelengths and context, and the error by position next to transformers'."""
    from ..measuring.curves import curves, num_steps
    from .plotting import draw_curves

    path = output or (None if as_json else Path("rope.png"))
    with errors_as_exit_codes():
        if path is not None:
            check_png(path, "--output")
        values, configs = _configs_of(config, layer_type)
        with progress("rotating", len(configs) * num_steps(), hidden=as_json) as advance:
            found = curves(configs, values, advance)
        if path is not None:
            written(path, "--output", lambda: draw_curves(found, path, Path(config).name))
    if as_json:
        print_json([asdict(part) for part in found])


@app.command(epilog=EXIT_CODES)
def demo(
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="All models, and calls of a server.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A shipped config, by name; may be repeated.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw wavelengths and errors to this PNG file.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda if there is one.")] = None,
) -> None:
    """Rotate q and k of shipped models at the end of their contexts, and show errors and times beside transformers'."""
    from ..environment import describe
    from ..measuring.accuracy import CONTRACT
    from ..measuring.models import shipped_layers
    from .demo import ROUNDS, SHORT, measure
    from .demo_report import WIDTH, demo_report, serving_report
    from .serving import serving_rows

    with errors_as_exit_codes():
        if plot is not None:
            check_png(plot, "--plot")
        target, backend = device_and_backend(device)
        todo = shipped_layers(only or (() if everything else SHORT))
        with progress("checking, then timing", len(todo) * (1 + ROUNDS), hidden=as_json) as advance:
            rows = measure(todo, target, backend, advance)
            serving = serving_rows(todo, target) if everything else []
    machine = describe()
    if as_json:
        results = {"results": [asdict(row) for row in rows], "serving": [asdict(row) for row in serving]}
        print_json({"machine": machine, "contract": CONTRACT, **results})
    else:
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=WIDTH)
        console.print(demo_report(rows, machine, console.width))
        if serving:
            console.print("", serving_report(serving), sep="\n")
    if plot is not None:
        from .plotting import draw

        with errors_as_exit_codes():
            written(plot, "--plot", lambda: draw(plot))
    if any(row.max_error > CONTRACT for row in rows) or any(row.max_error > row.contract for row in serving):
        typer.echo(f"error: a result is outside the accuracy contract of {CONTRACT:.0e}", err=True)
        raise typer.Exit(3)


@app.command(epilog=EXIT_CODES)
def check(as_json: AsJson = False) -> None:
    """Test every backend on this machine against exact results: all RoPE types, pairings, layouts and dtypes."""
    from ..environment import describe
    from ..measuring.accuracy import CONTRACT
    from . import check as checking

    machine = describe()
    todo, where = checking.calls(), checking.targets()
    with progress("checking", len(todo) * len(where), hidden=as_json) as advance:
        results = checking.run(todo, where, advance)
    if as_json:
        print_json({"machine": machine, "contract": CONTRACT, "results": checking.to_json(results)})
    else:
        not_run = {name: why for name, why in machine["backends"].items() if why is not None}
        Console().print(checking.check_report(results, not_run))
    if not checking.passed(results):
        typer.echo(f"error: a result is outside the accuracy contract of {CONTRACT:.0e}", err=True)
        raise typer.Exit(3)


@app.command(epilog=EXIT_CODES)
def bench(
    config: ConfigArgument = "llama-3.1-8b",
    layer_type: LayerType = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    seconds: Annotated[float, typer.Option(help="Per comparison.", min=0.0)] = 0.3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda if there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time a model's rotation against a plain pass over the same memory and against transformers."""
    from ..environment import describe
    from ..measuring.models import layers_of
    from . import bench as benching

    if dtype not in benching.DTYPES:
        raise typer.BadParameter(f"got {dtype!r}, allowed are {', '.join(benching.DTYPES)}", param_hint="--dtype")
    ratios, notes = [], []
    with errors_as_exit_codes():
        target, _ = device_and_backend(device)
        values, configs = _configs_of(config, layer_type)
        todo = [layers_of(config, name, name, values, rope_config) for name, rope_config in configs.items()]
        with progress("timing", len(todo) * benching.num_steps(), hidden=as_json) as advance:
            for layers in todo:
                try:
                    found, note = benching.measure(layers, benching.DTYPES[dtype], target, seconds, advance)
                except benching.WrongResultError as error:
                    typer.echo(f"error: {error}", err=True)
                    raise typer.Exit(3) from error
                ratios += found
                notes += [f"transformers, {layers.label}: {note}."] if note else []
    machine = describe()
    if as_json:
        print_json({"machine": machine, "dtype": dtype, "ratios": [asdict(r) for r in ratios], "notes": notes})
    else:
        Console().print(benching.bench_report(ratios, notes, machine, dtype))


@app.command(epilog=EXIT_CODES)
def coverage(
    library: Annotated[str, typer.Option(help="transformers, diffusers or timm.")] = "transformers",
    as_json: AsJson = False,
) -> None:
    """List the models of an installed library that we can accelerate, and why others cannot be."""
    from ..integrations.tables import coverage as by_table
    from ..integrations.transformers import coverage as probe

    allowed = ("transformers", *by_table.LIBRARIES)
    if library not in allowed:
        raise typer.BadParameter(f"got {library!r}, allowed are {', '.join(allowed)}", param_hint="--library")
    with errors_as_exit_codes():
        try:
            files = probe.modeling_files() if library == "transformers" else by_table.model_files(library)
        except ImportError as error:
            raise LacksError(f"{error}; pip install {library}") from error
        with progress("probing", len(files), hidden=as_json) as advance:
            found = probe.coverage(advance) if library == "transformers" else by_table.coverage(library, advance)
            counted = probe.summary(found, library)
    if as_json:
        print_json(counted)
    else:
        typer.echo(probe.as_text(counted))


@app.command(epilog=EXIT_CODES)
def vllm(config: ConfigArgument, as_json: AsJson = False) -> None:
    """Show what the vLLM plug-in replaces in a model, the error of vLLM's own table, and where it means otherwise."""
    from ..measuring.catalog import load
    from .vllm_report import vllm_report

    with errors_as_exit_codes():
        try:
            from ..integrations.vllm.audit import audit

            found = audit(load(config))
        except ImportError as error:
            raise LacksError(f"{error}; the command needs vLLM (pip install vllm)") from error
    if as_json:
        print_json([asdict(row) for row in found])
    else:
        Console().print(vllm_report(found))
