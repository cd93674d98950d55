"""Make the records, which are not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .rows.records import RECORDS


@pytest.mark.parametrize("name", RECORDS)
def test_record(name: str, record: Callable[[str, Any], None]) -> None:
    """Count or compare."""
    record(name, RECORDS[name]())
