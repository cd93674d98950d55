"""The time that CUDA calls take on the host: ours beside transformers, Liger and one elementwise operation of torch.

Run by `make host-check`, over a GPU that does nothing: a real driver adds the same to every launch. Rows are medians of
interleaved runs in one process, as thread time and as a ratio to the elementwise operation. The budgets are for a
machine on which that takes 1.5 us, and are scaled by it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import rope_kernels as rk

__all__ = ["HostRow", "main"]

ELEMENTWISE = 1.5
ROUNDS, CALLS = 25, 60


class HostRow(NamedTuple):
    """One call.

    Attributes:
        name: of the call.
        backend: that is chosen for it; ``None``: the dispatch rule.
        call: makes it.
        budget: in us, where an elementwise operation takes :data:`ELEMENTWISE`.
        with_gradient: whether gradients are on.
    """

    name: str
    backend: str | None
    call: Callable[[], Any]
    budget: float | None = None
    with_gradient: bool = False


def _rows() -> list[HostRow]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cfg = rk.RopeConfig(
        head_dim=128, rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192, max_position_embeddings=131072,
    )  # fmt: skip
    options: dict[str, Any] = dict(device="cuda", dtype=torch.bfloat16)
    q, k = (torch.empty(4, 1, heads, 128, **options) for heads in (32, 8))
    outputs = torch.empty_like(q), torch.empty_like(k)
    wide_q, wide_k = q.transpose(1, 2), k.transpose(1, 2)
    positions = torch.zeros(4, 1, device="cuda", dtype=torch.int64)
    offset = torch.zeros(4, device="cuda", dtype=torch.int64)
    cos, sin = torch.empty(2, 4, 1, 128, **options)
    leaf_q, leaf_k = q.clone().requires_grad_(), k.clone().requires_grad_()
    operator, text = torch.ops.rope_kernels.rotate_.default, cfg.spec()
    rows = [
        HostRow("torch, one elementwise operation", None, q.neg_),
        HostRow("transformers, apply_rotary_pos_emb", None, lambda: apply_rotary_pos_emb(wide_q, wide_k, cos, sin)),
        *_liger(wide_q, wide_k, cos, sin),
    ]
    for name, backend in (("", None), (", Triton chosen", "triton"), (", native chosen", "native")):
        most = 12 if backend else 0
        rows += [
            HostRow(f"apply_rope_{name}", backend, lambda: rk.apply_rope_(q, k, positions, cfg), most or 5),
            HostRow(
                f"apply_rope_, offset{name}", backend, lambda: rk.apply_rope_(q, k, None, cfg, offset=offset), most or 5
            ),
            HostRow(f"apply_rope{name}", backend, lambda: rk.apply_rope(q, k, positions, cfg), most or 8),
            HostRow(
                f"apply_rope, out={name}", backend, lambda: rk.apply_rope(q, k, positions, cfg, out=outputs), most or 8
            ),
            HostRow(
                f"the operator{name}",
                backend,
                lambda: operator(q, k, positions, None, None, None, None, text),
                most or 6,
            ),
            HostRow(f"with a gradient{name}", backend, lambda: rk.apply_rope(leaf_q, leaf_k, positions, cfg), 20, True),
            HostRow(f"by a table{name}", backend, lambda: rk.apply_rotary_pos_emb(wide_q, wide_k, cos, sin), most or 8),
        ]
    return rows


def _liger(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> list[HostRow]:
    try:
        from liger_kernel.ops.rope import LigerRopeFunction
    except ImportError:
        return []
    return [HostRow("Liger", None, lambda: LigerRopeFunction.apply(q, k, cos, sin))]


def _measure(rows: list[HostRow]) -> dict[str, float]:
    """Medians in us."""
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    for number in range(ROUNDS + 1):
        for row in rows:
            with rk.use_backend(row.backend), torch.set_grad_enabled(row.with_gradient):
                start = time.thread_time()
                for _ in range(CALLS):
                    row.call()
                spent = (time.thread_time() - start) / CALLS * 1e6
            if number:  # the first round compiles
                times[row.name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Print the table, and name the rows over budget. The exit status is 1 if a row is slower than transformers."""
    rows = _rows()
    medians = _measure(rows)
    one, eager = medians[rows[0].name], medians[rows[1].name]
    table = Table(
        "call", "us", "elementwise operations", "budget", title="host time of a decode call, 4 x (32/8) x 128, bf16"
    )
    over, slower = [], []
    for row in rows:
        time_of, limit = medians[row.name], None if row.budget is None else row.budget * one / ELEMENTWISE
        if limit is not None and time_of > limit:
            over.append(row.name)
        if limit is not None and time_of > eager:
            slower.append(row.name)
        table.add_row(row.name, f"{time_of:.1f}", f"{time_of / one:.1f}", "" if limit is None else f"{limit / one:.1f}")
    Console().print(table)
    for name in over:
        print(f"over budget: {name}")
    for name in slower:
        print(f"slower than transformers: {name}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
