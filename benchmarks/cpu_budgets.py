"""The budgets of the CPU path, measured: ``python benchmarks/cpu_budgets.py [--json] [--only TEXT] [--seconds S]``.

Every row is checked for its result before it is timed. Peers that are not installed are named as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import alternate

import rope_kernels as rk
from rope_kernels.backends import native

Q_HEADS, K_HEADS, HEAD_DIM = 32, 8, 128
LLAMA = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192, max_position_embeddings=131072,
)  # fmt: skip
CONFIG = rk.RopeConfig(head_dim=HEAD_DIM, **LLAMA)
Call = Callable[[], object]


@dataclass
class Row:
    """One budget: our call, the peer's, and how many times its speed is asked for."""

    name: str
    needed: float
    ours: Call
    peer: Call
    threads: tuple[int, int] = (1, 1)


def tensors(tokens: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of Llama-8B."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, tokens, h, HEAD_DIM, generator=generator).to(dtype) for h in (Q_HEADS, K_HEADS))
    return q, k


def transformers_call(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> Call:
    """transformers eager: cos and sin, then apply."""
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    config = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
        rope_parameters={n: v for n, v in LLAMA.items() if n != "max_position_embeddings"},
    )  # fmt: skip
    embedding = modeling_llama.LlamaRotaryEmbedding(config)
    rows = positions if positions.dim() == 2 else positions[None]
    q, k = q.transpose(1, 2), k.transpose(1, 2)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = embedding(q, rows)
        return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)

    wanted = call()
    got = rk.apply_rope(q, k, positions, CONFIG, layout="bhsd")
    assert all((a.float() - b.float()).abs().max() < 0.1 for a, b in zip(got, wanted, strict=True))
    return call


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
        peer = transformers_call(q, k, positions)
        shape = f"{tokens} tokens" if tokens > 1 else f"decode batch {batch}"
        args = (q, k, positions, CONFIG)
        yield Row(f"in place, {shape}, against transformers", in_place, lambda a=args: rk.apply_rope_(*a), peer)
        if functional:
            name = f"allocating, {shape}, against transformers"
            yield Row(name, functional, lambda a=args: rk.apply_rope(*a), peer)
    q, k = (x.requires_grad_() for x in tensors(1))
    positions = torch.tensor([[1000]])
    peer = transformers_call(q, k, positions)
    yield Row("with a gradient needed, decode batch 1, against transformers", 5,
              lambda: rk.apply_rope(q, k, positions, CONFIG), peer)  # fmt: skip


def thread_rows() -> Iterator[Row]:
    """Two threads against one."""
    q, k = tensors(32768)
    positions = torch.arange(32768)

    def call() -> object:
        return rk.apply_rope_(q, k, positions, CONFIG)

    yield Row("in place, 32768, 2 threads against 1", 1.8, call, call, threads=(2, 1))


def measured(row: Row, seconds: float) -> dict[str, object]:
    """A row's figures."""
    pair = alternate(row.ours, row.peer, seconds, row.threads)
    low, high = pair.spread
    return {"name": row.name, "speed": pair.speed, "low": low, "high": high, "needed": row.needed,
            "met": pair.speed >= row.needed}  # fmt: skip


def all_rows() -> Iterator[Row]:
    """Every budget."""
    yield from floor_rows()
    yield from transformers_rows()
    yield from thread_rows()


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print a list of objects")] = False,
    only: Annotated[str, typer.Option(help="rows whose name has this text")] = "",
    seconds: Annotated[float, typer.Option(help="per row")] = 2.0,
) -> None:
    """Measure the CPU path against its budgets: how many times the peer's speed, median of alternating runs."""
    results = [measured(row, seconds) for row in all_rows() if only in row.name]
    if as_json:
        print(json.dumps({"isa": native.isa(), "torch": torch.__version__, "rows": results}, indent=1))
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


if __name__ == "__main__":
    typer.run(main)
