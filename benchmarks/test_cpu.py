"""The CPU's rows: peers, floors, models, dtypes, backends, gradients, budgets, complexity, a whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from complexity import complexity_rows
from cpu_budgets import budget_rows
from cpu_rows import cpu_rows
from rows import Row
from whole_model import whole_model_rows

BUDGETS = budget_rows()
ROWS = [*BUDGETS, *cpu_rows(BUDGETS), *complexity_rows(), *whole_model_rows()]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, paired: Callable[[Row], None]) -> None:
    """Check, then time."""
    paired(row)
