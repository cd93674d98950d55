"""The table that ``rope-kernels vllm`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..integrations.vllm.audit import Audit

__all__ = ["vllm_report"]


def vllm_report(found: list[Audit]) -> Table:
    """A row for each kind of layers."""
    table = Table("layers", "vLLM's class", "rotated by", "vLLM's table", "vLLM's frequencies")
    for row in found:
        by = "rope_kernels" if row.replaced else f"vLLM: {row.reason}"
        error = "" if row.table_error is None else f"off by {row.table_error:.1e} near position {row.farthest}"
        meaning = row.note or ("the config's" if row.replaced else "")
        table.add_row(row.layers or "all", row.kind, by, error, meaning)
    return table
