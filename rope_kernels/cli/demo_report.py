"""The tables of ``demo`` and ``info`` for a terminal, with a legend of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..measuring.accuracy import CONTRACT
from .demo import DECODE_BATCH, PREFILL_TOKENS, ROUNDS, DemoRow, Times
from .serving import ServingRow

__all__ = ["WIDTH", "demo_report", "info_report", "serving_report"]

WIDTH = 108
"""Width of what is not printed on a terminal, in characters. Where a table does not fit, it has only the columns marked
``_Column.always``."""


class _Column(NamedTuple):
    header: str
    cell: Callable[[DemoRow], str | Text]
    always: bool = True
    is_number: bool = True


def _own_error(row: DemoRow) -> Text:
    return Text(f"{row.max_error:.1e}", style="green" if row.max_error <= CONTRACT else "bold red")


def _peer_error(row: DemoRow) -> str:
    return "-" if row.transformers_max_error is None else f"{row.transformers_max_error:.1e}"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _faster(times: Times) -> str:
    return "-" if times.faster is None else f"{times.faster:.1f}x"


_COLUMNS = (
    _Column("model", lambda row: row.label, is_number=False),
    _Column("rope type", lambda row: row.rope_type, always=False, is_number=False),
    _Column("context", lambda row: f"{row.context:,}", always=False),
    _Column("error\ntrans-\nformers", _peer_error),
    _Column("error\n\nours", _own_error),
    _Column("decode\ntrans-\nformers", lambda row: _us(row.decode.transformers_us), always=False),
    _Column("decode\n\nours", lambda row: _us(row.decode.ours_us), always=False),
    _Column("decode\n\nfaster", lambda row: _faster(row.decode)),
    _Column("prefill\ntrans-\nformers", lambda row: _us(row.prefill.transformers_us), always=False),
    _Column("prefill\n\nours", lambda row: _us(row.prefill.ours_us), always=False),
    _Column("prefill\n\nfaster", lambda row: _faster(row.prefill)),
)


def demo_report(rows: Sequence[DemoRow], machine: Mapping[str, Any], width: int = WIDTH) -> Group:
    """The demo's table with its legend and footnotes, for a terminal of ``width`` characters."""
    whole = _table(rows, _COLUMNS)
    narrow = Console(width=1000).measure(whole).maximum > width
    table = _table(rows, [column for column in _COLUMNS if column.always]) if narrow else whole
    return Group(table, "", *(Text(line, style="dim") for line in _legend(rows, machine)))


def _table(rows: Sequence[DemoRow], columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(
            column.header, justify="right" if column.is_number else "left", no_wrap=True, vertical="bottom"
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def _legend(rows: Sequence[DemoRow], machine: Mapping[str, Any]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.transformers_note:
            notes.setdefault(row.transformers_note, []).append(row.label)
    missing = [
        f"transformers, {', '.join(found) if len(found) < len(rows) else 'all'}: {why}." for why, found in notes.items()
    ]
    return [
        f"error: max |y - exact| / max |x| in fp32 at the end of the context; contract {CONTRACT:.0e}.",
        f"decode, prefill: µs per layer in bf16, {DECODE_BATCH} sequences of one token, {PREFILL_TOKENS} tokens.",
        "Ours computes the angles, too; transformers' is apply_rotary_pos_emb by a table that is there.",
        *missing,
        f"Medians of {ROUNDS} rounds of this run; backend {', '.join(sorted({row.backend for row in rows}))}, "
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
