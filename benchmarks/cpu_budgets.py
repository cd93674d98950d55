"""The budgets of the CPU path, measured: ``python benchmarks/cpu_budgets.py [--json] [--only TEXT] [--seconds S]``.

Every row is checked for its result before it is timed. Peers that are not installed are named as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import peers
import rope_kernels as rk
from peers import CONFIG, HEAD_DIM, K_HEADS, Q_HEADS, Call
from rope_kernels.backends import native
from timing import alternate


@dataclass
class Row:
    """One budget: our call, the peer's, and how many times its speed is asked for; our instruction set, if forced."""

    name: str
    needed: float
    ours: Call
    peer: Call
    threads: tuple[int, int] = (1, 1)
    isa: str = ""


def tensors(tokens: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of Llama-8B."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, tokens, h, HEAD_DIM, generator=generator).to(dtype) for h in (Q_HEADS, K_HEADS))
    return q, k


def floor_rows() -> Iterator[Row]:
    """Against what memory allows."""
    for tokens in (4096, 32768):
        q, k = tensors(tokens)
        positions = torch.arange(tokens)
        words = [x.clone().view(torch.int32) for x in (q, k)]
        yield Row(f"in place, {tokens}, against bitwise_not_", 0.95,
                  lambda q=q, k=k, p=positions: rk.apply_rope_(q, k, p, CONFIG),
                  lambda words=words: [w.bitwise_not_() for w in words])  # fmt: skip
    q, k = tensors(32768)
    out = torch.zeros_like(q), torch.zeros_like(k)
    positions = torch.arange(32768)
    yield Row("out=, 32768, against copy_", 1 / 0.8, lambda: rk.apply_rope(q, k, positions, CONFIG, out=out),
              lambda: (out[0].copy_(q), out[1].copy_(k)))  # fmt: skip
    small, positions4 = tensors(4096), torch.arange(4096)
    yield Row("allocating, 4096, against clone", 1 / 1.1, lambda: rk.apply_rope(*small, positions4, CONFIG),
              lambda: [x.clone() for x in small])  # fmt: skip


def transformers_rows() -> Iterator[Row]:
    """Against transformers eager, the public call, Python included."""
    for tokens, batch, in_place, functional in ((4096, 1, 20, 6), (512, 1, 10, None), (1, 32, 12, None), (1, 1, 10, 7)):
        q, k = tensors(tokens, batch)
        positions = torch.arange(tokens) if tokens > 1 else torch.randint(0, 100000, (batch, 1))
        peer = peers.transformers(q, k, positions)
        shape = f"{tokens} tokens" if tokens > 1 else f"decode batch {batch}"
        args = (q, k, positions, CONFIG)
        yield Row(f"in place, {shape}, against transformers", in_place, lambda a=args: rk.apply_rope_(*a), peer)
        if functional:
            name = f"allocating, {shape}, against transformers"
            yield Row(name, functional, lambda a=args: rk.apply_rope(*a), peer)
    q, k = (x.requires_grad_() for x in tensors(1))
    positions = torch.tensor([[1000]])
    peer = peers.transformers(q, k, positions)
    yield Row("with a gradient needed, decode batch 1, against transformers", 5,
              lambda: rk.apply_rope(q, k, positions, CONFIG), peer)  # fmt: skip


def vllm_rows() -> Iterator[Row]:
    """Against vLLM's CPU operator, in place as ours; it has no instruction sets to force."""
    for tokens, batch, needed in ((4096, 1, {"": 1.8, "avx2": 1.5, "portable": 1.0}), (32768, 1, {"": 1.8}),
                                  (1, 32, {"": 2.0})):  # fmt: skip
        q, k = tensors(tokens, batch)
        positions = torch.arange(tokens) if tokens > 1 else torch.randint(0, 100000, (batch, 1))
        peer = peers.vllm(q, k, positions)
        shape = f"{tokens} tokens" if tokens > 1 else f"decode batch {batch}"
        for isa in [name for name in needed if name == "" or name in native.isas()]:
            yield Row(f"in place, {shape}, against vLLM" + (f", {isa} forced" if isa else ""), needed[isa],
                      lambda a=(q, k, positions, CONFIG): rk.apply_rope_(*a), peer, isa=isa)  # fmt: skip


def onnxruntime_rows() -> Iterator[Row]:
    """Against onnxruntime, float32, into given buffers."""
    q, k = tensors(4096, dtype=torch.float32)
    out, positions = (torch.zeros_like(q), torch.zeros_like(k)), torch.arange(4096)
    peer = peers.onnxruntime(q, k, positions, out)
    yield Row("out=, 4096, float32, against onnxruntime", 1.3,
              lambda: rk.apply_rope(q, k, positions, CONFIG, out=out), peer)  # fmt: skip


def packed_rows() -> Iterator[Row]:
    """A packed batch against one sequence of as many tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 4097, (1000,), generator=generator)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    config = rk.RopeConfig(head_dim=64)
    q, k = (torch.randn(int(bounds[-1]), heads, 64, dtype=torch.bfloat16) for heads in (8, 2))

    def call(cu_seqlens: torch.Tensor) -> Call:
        return lambda: rk.apply_rope_(q, k, None, config, layout="thd", cu_seqlens=cu_seqlens)

    yield Row("in place, 1000 packed sequences against one", 0.9, call(bounds), call(bounds[[0, -1]]))


def thread_rows() -> Iterator[Row]:
    """Two threads against one."""
    q, k = tensors(32768)
    positions = torch.arange(32768)

    def call() -> object:
        return rk.apply_rope_(q, k, positions, CONFIG)

    yield Row("in place, 32768, 2 threads against 1", 1.8, call, call, threads=(2, 1))


def measured(row: Row, seconds: float) -> dict[str, object]:
    """A row's figures."""
    if row.isa:
        native.force_isa(row.isa)
    try:
        pair = alternate(row.ours, row.peer, seconds, row.threads)
    finally:
        native.force_isa("")
    low, high = pair.spread
    return {"name": row.name, "speed": pair.speed, "low": low, "high": high, "needed": row.needed,
            "met": pair.speed >= row.needed}  # fmt: skip


def all_rows(missing: list[str]) -> Iterator[Row]:
    """Every budget; of a peer that is not installed, what would install it goes to ``missing``."""
    for rows in (floor_rows, transformers_rows, vllm_rows, onnxruntime_rows, packed_rows, thread_rows):
        try:
            yield from rows()
        except peers.MissingPeerError as error:
            missing.append(str(error))


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print a list of objects")] = False,
    only: Annotated[str, typer.Option(help="rows whose name has this text")] = "",
    seconds: Annotated[float, typer.Option(help="per row")] = 2.0,
) -> None:
    """Measure the CPU path against its budgets: how many times the peer's speed, median of alternating runs."""
    missing: list[str] = []
    results = [measured(row, seconds) for row in all_rows(missing) if only in row.name]
    if as_json:
        print(
            json.dumps({"isa": native.isa(), "torch": torch.__version__, "rows": results, "missing": missing}, indent=1)
        )
        return
    table = Table("budget", "speed", "middle half", "needed", "met", title=f"CPU, bfloat16, {native.isa()}")
    for r in results:
        row = (
            f"{r['speed']:.2f}x",
            f"{r['low']:.2f}-{r['high']:.2f}",
            f"{r['needed']:.2f}x",
            "yes" if r["met"] else "no",
        )
        table.add_row(str(r["name"]), *row)
    Console().print(table)
    for peer in missing:
        Console().print(f"not installed: {peer}", markup=False)


if __name__ == "__main__":
    typer.run(main)
