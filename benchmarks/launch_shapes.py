"""The launches over few and many tokens, by a model: ``python -m benchmarks.launch_shapes``. Nothing is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from .rows.launch_model import MACHINES, Call, Launch, cuda_launch, predict, triton_launch
from .rows.static_figures import has_nvcc

__all__ = ["HEADS", "TOKENS", "main", "table"]

TOKENS = (1, 16, 64, 256, 1024, 2047, 2048, 4096, 8192, 12288, 16384, 32768, 65536)
HEADS = ((32, 8), (8, 1))
"""Of q and k."""
_COLUMNS = ("tiles", "KB", "µs", "ns/token")


def table(name: str, launches_of: Sequence[Callable[[Call], Launch]], q_heads: int, k_heads: int) -> Table:
    """A row per number of tokens, and for each GPU what the model says of its launch."""
    title = f"{name}, {q_heads}/{k_heads} heads of 128 channels, bf16, in place"
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    made.add_column("\ntokens", justify="right")
    for machine in MACHINES:
        for i, column in enumerate(_COLUMNS):
            made.add_column(f"{'' if i else machine.name}\n{column}", justify="right", no_wrap=True)
    for tokens in TOKENS:
        call = Call(tokens, q_heads, k_heads)
        row = [f"{tokens:,}"]
        for machine, launch_of in zip(MACHINES, launches_of, strict=True):
            launch = launch_of(call)
            seconds = predict(call, launch, machine).seconds
            row += [str(launch.tiles), f"{launch.in_flight / 1024:.1f}", f"{seconds * 1e6:.1f}",
                    f"{seconds / tokens * 1e9:.1f}"]  # fmt: skip
        made.add_row(*row)
    return made


def main() -> None:
    """Print a table per backend and number of heads."""
    console = Console(width=118)
    console.print("A model of launches, which no GPU has confirmed: see benchmarks/rows/launch_model.py.")
    console.print("Tiles that a program goes through, KB in flight on a multiprocessor, the time of the call.\n")
    backends = {"Triton": [partial(triton_launch, multiprocessors=m.multiprocessors) for m in MACHINES]}
    if has_nvcc():
        backends["CUDA"] = [partial(cuda_launch, multiprocessors=m.multiprocessors) for m in MACHINES]
    else:
        print("without the CUDA kernels: their launch plan needs nvcc, which is not installed", file=sys.stderr)
    for name, launches_of in backends.items():
        for heads in HEADS:
            console.print(table(name, launches_of, *heads), "", sep="\n")


if __name__ == "__main__":
    main()
