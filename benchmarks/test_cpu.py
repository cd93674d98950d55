"""The CPU's rows: peers, floors, models, dtypes, backends, gradients, budgets, their limits, complexity, a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from complexity import complexity_rows
from cpu_budgets import budget_rows
from cpu_limits import limit_rows
from cpu_rows import cpu_rows
from rows import Row
from whole_model import whole_model_rows

BUDGETS = budget_rows()
ROWS = [*BUDGETS, *limit_rows(), *cpu_rows(BUDGETS), *complexity_rows(), *whole_model_rows()]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, paired: Callable[[Row], None]) -> None:
    """Check, then time."""
    paired(row)
