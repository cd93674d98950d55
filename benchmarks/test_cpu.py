"""Time the rows of the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .rows.budgets import budget_rows
from .rows.complexity import complexity_rows
from .rows.cpu_limits import limit_rows
from .rows.cpu_rows import cpu_rows
from .rows.row import BenchmarkRow
from .rows.whole_model import whole_model_rows

BUDGETS = budget_rows()
ROWS = [*BUDGETS, *limit_rows(), *cpu_rows(BUDGETS), *complexity_rows(), *whole_model_rows()]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: BenchmarkRow, paired: Callable[[BenchmarkRow], None]) -> None:
    """Check, then time."""
    paired(row)
