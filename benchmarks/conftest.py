"""Fixtures of the benchmarks, which put rows, records and the environment into pytest-benchmark's data file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rope_kernels.backends import native
from rope_kernels.environment import describe
from rope_kernels.measuring.forms import TimedCall
from rope_kernels.measuring.timing import Pair

from .rows.peers import MissingPeerError
from .rows.row import BenchmarkRow, measure

ROUND_SECONDS = 2e-3
_KEY = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for the time of a row, and for the rows to measure."""
    parser.addoption("--row-seconds", type=float, default=1.5, help="seconds of alternating calls per row")
    parser.addoption("--rows", type=Path, help="a JSON file that lists the names of the only rows to measure")


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the records and the missing peers."""
    config.stash[_KEY] = {"missing": {}, "records": {}}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the rows that ``--rows`` does not name."""
    chosen = config.getoption("--rows")
    if chosen is not None:
        names = set(json.loads(chosen.read_text(encoding="utf-8")))
        items[:] = [item for item in items if getattr(_row_of(item), "name", None) in names]


def _row_of(item: pytest.Item) -> BenchmarkRow | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("row")


@pytest.fixture
def paired(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[BenchmarkRow], None]:
    """Measure a row: its result goes to ``extra_info``, further rounds of our call to pytest-benchmark's statistics."""
    config = request.config

    def more_rounds(ours: TimedCall, pair: Pair) -> None:
        benchmark.pedantic(ours, rounds=5, iterations=max(1, int(ROUND_SECONDS / pair.medians[0])))

    def run(row: BenchmarkRow) -> None:
        try:
            result = measure(row, config.getoption("--row-seconds"), more_rounds)
        except MissingPeerError as error:
            config.stash[_KEY]["missing"][row.name] = str(error)
            pytest.skip(f"not installed: {error}")
        finally:
            torch.set_num_threads(1)
        benchmark.group = row.group
        benchmark.extra_info |= result.to_dict()

    return run


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Keep a record under its name."""
    return request.config.stash[_KEY]["records"].__setitem__


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add versions and instruction set, and drop the machine's name."""
    machine_info.pop("node", None)
    machine_info["environment"] = describe() | {"isa": native.isa(), "cores": os.cpu_count()}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:  # fmt: skip
    """Add the records, the missing peers and the command."""
    output_json |= config.stash[_KEY]
    output_json["command"] = " ".join(["python -m pytest", *map(str, config.invocation_params.args)])
    output_json["row_seconds"] = config.getoption("--row-seconds")
