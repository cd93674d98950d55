"""Time the rows of a CUDA device, if there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .rows.cuda_rows import cuda_rows
from .rows.row import BenchmarkRow


@pytest.mark.parametrize("row", cuda_rows(), ids=str)
def test_row(row: BenchmarkRow, paired: Callable[[BenchmarkRow], None]) -> None:
    """Check, then time."""
    paired(row)
