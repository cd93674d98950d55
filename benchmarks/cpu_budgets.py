"""The budgets of the CPU path, measured: ``python benchmarks/cpu_budgets.py [--json] [--only TEXT] [--seconds S]``.

Every row is checked for its result before it is timed. Peers that are not installed are named as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import peers
import rope_kernels as rk
from cpu_limits import limit_rows
from ours import FLOORS, FORMS, Call, floor, ours
from rope_kernels.backends import native
from rows import Result, Row, measured, sorted_by
from shapes import DECODE_1, DECODE_32, LLAMA_8B, Shape, inputs

__all__ = ["budget_rows"]

QUESTION = "budgets"


def _size(shape: Shape) -> str:
    return str(shape) if shape.tokens == 1 else f"{shape.tokens} tokens"


def _row(form: str, shape: Shape, against: str, needed: float, dtype: str = "bf16", isa: str = "") -> Row:
    """Our call in one form against a peer, or the floor of that form."""

    def build() -> tuple[Call, Call]:
        x = inputs(LLAMA_8B, shape, dtype)
        calls = {"transformers": peers.transformers, "vLLM": peers.vllm, "onnxruntime": peers.onnxruntime}
        return ours(form, LLAMA_8B, x), calls[against](LLAMA_8B, x) if against in calls else floor(form, x)

    words = [f"{form}, {_size(shape)}", f", {dtype}" if dtype != "bf16" else "", f", against {against}"]
    facts = {} if isa else sorted_by(LLAMA_8B, shape, dtype, form, against)
    return Row(QUESTION, "".join(words) + (f", {isa} forced" if isa else ""), build, needed, isa=isa, facts=facts)


def _floor_rows() -> Iterator[Row]:
    """Against what memory allows."""
    for form, shape, needed in (
        ("in place", Shape(1, 4096), 0.95), ("in place", Shape(1, 32768), 0.95),
        ("out=", Shape(1, 32768), 1 / 0.8), ("allocating", Shape(1, 4096), 1 / 1.1),
    ):  # fmt: skip
        yield _row(form, shape, FLOORS[form][0], needed)


def _transformers_rows() -> Iterator[Row]:
    """Against transformers eager, the public call, Python included."""
    for form, shape, needed in (
        ("in place", Shape(1, 4096), 20), ("allocating", Shape(1, 4096), 6), ("in place", Shape(1, 32768), 20),
        ("allocating", Shape(1, 32768), 6), ("in place", Shape(1, 512), 10), ("in place", DECODE_32, 12),
        ("in place", DECODE_1, 10), ("allocating", DECODE_1, 7),
    ):  # fmt: skip
        yield _row(form, shape, "transformers", needed)

    def build() -> tuple[Call, Call]:
        q, k, positions = inputs(LLAMA_8B, DECODE_1)
        x = q.requires_grad_(), k.requires_grad_(), positions
        return FORMS["allocating"](LLAMA_8B.config, *x), peers.transformers(LLAMA_8B, x)

    yield Row(QUESTION, "with a gradient needed, decode batch 1, against transformers", build, 5)


def _vllm_rows() -> Iterator[Row]:
    """Against vLLM's CPU operator, in place as ours; it has no instruction sets to force."""
    for shape, needed in ((Shape(1, 4096), 1.8), (Shape(1, 32768), 1.8), (DECODE_32, 2.0)):
        yield _row("in place", shape, "vLLM", needed)
    for isa, needed in (("avx2", 1.5), ("portable", 1.0)):
        if isa in native.isas():
            yield _row("in place", Shape(1, 4096), "vLLM", needed, isa=isa)


def _packed() -> tuple[Call, Call]:
    """1000 packed sequences, and as many tokens in one."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 4097, (1000,), generator=generator)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    config = rk.RopeConfig(head_dim=64)
    q, k = (torch.randn(int(bounds[-1]), heads, 64, dtype=torch.bfloat16) for heads in (8, 2))
    last = slice(int(bounds[-2]), None)
    wanted = rk.apply_rope(q[None, last], k[None, last], torch.arange(int(lengths[-1])), config)
    got = rk.apply_rope(q, k, None, config, layout="thd", cu_seqlens=bounds)
    assert all(torch.equal(a[last], b[0]) for a, b in zip(got, wanted, strict=True) if a is not None and b is not None)

    def call(cu_seqlens: torch.Tensor) -> Call:
        return lambda: rk.apply_rope_(q, k, None, config, layout="thd", cu_seqlens=cu_seqlens)

    return call(bounds), call(bounds[[0, -1]])


def _thread_rows() -> Iterator[Row]:
    """Two threads against one, and against the floor on two: where one takes all of the memory, neither gains."""

    def build(with_floor: bool) -> tuple[Call, Call]:
        x = inputs(LLAMA_8B, Shape(1, 32768))
        call = ours("in place", LLAMA_8B, x)
        return call, floor("in place", x) if with_floor else call

    name = "in place, 32768 tokens, 2 threads"
    yield Row(QUESTION, f"{name}, against 1", lambda: build(False), 1.8, threads=(2, 1))
    yield Row(QUESTION, f"{name}, against {FLOORS['in place'][0]}", lambda: build(True), 0.95, threads=(2, 2))


def budget_rows() -> list[Row]:
    """Every budget of the CPU path, none of them built."""
    return [
        *_floor_rows(),
        *_transformers_rows(),
        *_vllm_rows(),
        _row("out=", Shape(1, 4096), "onnxruntime", 1.3, dtype="fp32"),
        Row(QUESTION, "in place, 1000 packed sequences, against one", _packed, 0.9),
        *_thread_rows(),
    ]


def _printed(results: list[Result]) -> Table:
    table = Table("budget", "speed", "middle half", "needed", "met", title=f"CPU, bfloat16, {native.isa()}")
    for r in results:
        asked = ("", "") if r.needed is None else (f"{r.needed:.2f}x", "yes" if r.met else "no")
        table.add_row(r.name, f"{r.speed:.2f}x", f"{r.low:.2f}-{r.high:.2f}", *asked)
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="print a list of objects")] = False,
    only: Annotated[str, typer.Option(help="rows whose name has this text")] = "",
    seconds: Annotated[float, typer.Option(help="per row")] = 2.0,
) -> None:
    """Measure the CPU path against its budgets: how many times the peer's speed, median of alternating runs.

    Rows for which nothing is needed say what this machine allows.
    """
    results: list[Result] = []
    missing: set[str] = set()
    for row in (*budget_rows(), *limit_rows()):
        if only in row.name:
            try:
                results.append(measured(row, seconds))
            except peers.MissingPeerError as error:
                missing.add(str(error))
    if as_json:
        rows: list[dict[str, Any]] = [r.to_dict() | {"met": r.met} for r in results]
        about = {"isa": native.isa(), "torch": torch.__version__, "rows": rows, "missing": sorted(missing)}
        print(json.dumps(about, indent=1))
        return
    Console().print(_printed(results))
    for peer in sorted(missing):
        Console().print(f"not installed: {peer}", markup=False)


if __name__ == "__main__":
    typer.run(main)
