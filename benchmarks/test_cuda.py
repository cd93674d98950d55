"""The rows of a CUDA device, where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cuda_rows import cuda_rows
from rows import Row


@pytest.mark.parametrize("row", cuda_rows(), ids=str)
def test_row(row: Row, paired: Callable[[Row], None]) -> None:
    """Check, then time."""
    paired(row)
