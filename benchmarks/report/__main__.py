"""Write RESULTS.md and its plots from the data of a run: ``python -m benchmarks.report [DATA]``.

Every figure of the report comes from the data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import tables
from .measurements import DATA, Run, read
from .plots import PLOTS, draw_all

__all__ = ["SECTIONS", "written"]

HOW = """\
Each row alternates two calls in one process, ours and a peer's, after both results were checked. Its speed is the
median of the ratios of neighbouring rounds, shown with the middle half of these ratios. Calls shorter than two
milliseconds are repeated within a round. CPU rows run on one thread unless they say otherwise. “In place”, “out=” and
“allocating” are the three forms of our call; their floors are `bitwise_not_`, `copy_` and `clone` on the same tensors.
"""

SECTIONS: dict[str, Callable[[Run], str]] = {
    "Budgets": tables.budgets,
    "Limits of this machine": tables.limits,
    "Against peers": lambda run: tables.rotations(run, ["peers", "budgets"], _peers(run)),
    "Against the memory floor": lambda run: tables.rotations(run, ["floors", "budgets"], _floors(run)),
    "Other models": lambda run: tables.rotations(run, ["models"]),
    "Other dtypes": lambda run: tables.rotations(run, ["dtypes"]),
    "Tables, heads before tokens, partly rotated heads, long heads": lambda run: tables.rotations(run, ["others"]),
    "With the backward pass": tables.gradient,
    "Backends": lambda run: _backends(run) + tables.rotations(run, ["backends"]),
    "A whole model": tables.whole_model,
    "Complexity": tables.complexity,
    "GPU": tables.cuda,
    "Not measured": tables.missing,
}


def _floors(run: Run) -> list[str]:
    return sorted({r.facts["peer"] for r in run.of("floors")})


def _peers(run: Run) -> list[str]:
    return sorted({r.facts["peer"] for r in run.of("peers", "budgets") if "peer" in r.facts} - set(_floors(run)))


def _backends(run: Run) -> str:
    here = run.environment["backends"]
    states = ", ".join(f"{name}: {'usable' if reason is None else reason}" for name, reason in here.items())
    native = f"The native CPU kernels ({run.environment['isa']}) against plain torch and other instruction sets"
    return f"{native}. Here are {states}.\n\n"


def _header(run: Run) -> str:
    env, commit = run.environment, run.commit
    changed = ", with changes that were not committed" if commit.get("dirty") else ""
    versions = ", ".join(
        f"{name} {env[name]}" for name in ("rope_kernels", "torch", "triton", "transformers", "python")
    )
    return (
        "# Results\n\n"
        f"Measured with `{run.command}` ({run.row_seconds:g} s a row); written by `python -m benchmarks.report`.\n\n"
        + tables.markdown(
            ("", ""),
            [
                ["processor", env["processor"]],
                ["instruction set", str(env["isa"])],
                ["cores", str(env["cores"])],
                ["GPU", env["cuda_device"] or "none"],
                ["system", env["platform"]],
                ["versions", versions],
                ["commit", f"{commit['id'][:12]}{changed}"],
            ],
        ).replace("---:", "---")
        + f"\n{HOW}"
    )


def written(run: Run, folder: Path) -> str:
    """The text of RESULTS.md, after its plots were written to ``folder / "plots"``."""
    paths = draw_all(run, folder / "plots")
    pictures = "\n".join(f"![{PLOTS[name][0]}]({path.relative_to(folder)})" for name, path in paths.items())
    parts = [_header(run), pictures + "\n"]
    parts += [f"## {title}\n\n{make(run)}" for title, make in SECTIONS.items()]
    return "\n".join(parts)


def main(
    data: Annotated[Path, typer.Argument(help="data file of a run of `make bench`")] = DATA,
    folder: Annotated[Path | None, typer.Option(help="folder to write to; the processor's own if not given")] = None,
) -> None:
    """Write RESULTS.md and plots/*.svg, and print the budgets and the slopes."""
    run = read(data)
    folder = folder or run.folder
    text = written(run, folder)
    (folder / "RESULTS.md").write_text(text, encoding="utf-8")
    print(tables.budgets(run), tables.complexity(run), sep="\n")
    print(folder / "RESULTS.md")


if __name__ == "__main__":
    typer.run(main)
