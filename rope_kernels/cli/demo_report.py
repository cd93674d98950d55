"""The tables of ``demo`` and ``info`` for a terminal, with a legend of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..measuring.accuracy import CONTRACT
from .demo import DECODE_BATCH, PREFILL_TOKENS, ROUNDS, DemoRow
from .serving import ServingRow

__all__ = ["WIDTH", "demo_report", "info_report", "serving_report"]

WIDTH = 108
"""Width of the whole table, in characters. A narrower terminal gets only the columns marked ``_Column.always``."""


class _Column(NamedTuple):
    header: str
    cell: Callable[[DemoRow], str | Text]
    always: bool = True
    is_number: bool = True


def _own_error(row: DemoRow) -> Text:
    return Text(f"{row.max_error:.1e}", style="green" if row.max_error <= CONTRACT else "bold red")


def _peer_error(row: DemoRow) -> str:
    return "-" if row.transformers_max_error is None else f"{row.transformers_max_error:.1e}"


_COLUMNS = (
    _Column("model", lambda row: row.label, is_number=False),
    _Column("rope type", lambda row: row.rope_type, is_number=False),
    _Column("backend", lambda row: row.backend, always=False, is_number=False),
    _Column("q/k heads\nx dim", lambda row: f"{row.q_heads}/{row.kv_heads}x{row.head_dim}", always=False),
    _Column("context", lambda row: f"{row.context:,}"),
    _Column("max\nerror", _own_error),
    _Column("trans-\nformers", _peer_error),
    _Column("prefill\nµs/token", lambda row: f"{row.prefill_us_per_token:.1f}"),
    _Column("decode\nµs/token", lambda row: f"{row.decode_us_per_token:.1f}"),
)


def demo_report(rows: Sequence[DemoRow], machine: Mapping[str, Any], width: int = WIDTH) -> Group:
    """The demo's table with its legend and footnotes, for a terminal of ``width`` characters."""
    narrow = width < WIDTH
    columns = [column for column in _COLUMNS if column.always or not narrow]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0 if narrow else 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column.header, justify="right" if column.is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return Group(table, "", *(Text(line, style="dim") for line in _legend(rows, machine)))


def _legend(rows: Sequence[DemoRow], machine: Mapping[str, Any]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.transformers_note:
            notes.setdefault(row.transformers_note, []).append(row.label)
    missing = [
        f"transformers, {', '.join(found) if len(found) < len(rows) else 'all'}: {why}." for why, found in notes.items()
    ]
    return [
        f"max error: max |y - exact| / max |x| in fp32 at the end of the context; contract {CONTRACT:.0e}.",
        "transformers: the same of the model's own rotary embedding and apply_rotary_pos_emb.",
        *missing,
        f"Times of this run: bf16, medians of {ROUNDS} rounds, prefill of {PREFILL_TOKENS} tokens,",
        f"decode of {DECODE_BATCH} sequences; backend {', '.join(sorted({row.backend for row in rows}))}, "
        f"torch {machine['torch']},",
        f"{machine['cuda_device'] or machine['processor']}, {machine['threads']} threads.",
    ]


def serving_report(rows: Sequence[ServingRow]) -> Table:
    """The demo's second table: calls that a server makes, and the error without each."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("model", "call", "max\nerror", "otherwise", "max\nerror"):
        table.add_column(name, justify="right" if "error" in name else "left")
    for row in rows:
        error = Text(f"{row.max_error:.1e}", style="green" if row.max_error <= row.contract else "bold red")
        table.add_row(row.label, row.call, error, row.otherwise, f"{row.otherwise_error:.1e}")
    return table


def info_report(machine: Mapping[str, Any]) -> Table:
    """A table of versions, device and backends, one line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in machine.items():
        if key not in ("backends", "error"):
            name = key if key.isupper() else key.replace("_", "-")
            table.add_row(name, Text(str(value) if value is not None else "none"))
    for name, reason in machine["backends"].items():
        table.add_row(f"backend {name}", Text("usable" if reason is None else f"not usable: {reason}"))
    return table
