"""The environments of `make test-oldest` and `make test-newest`: their versions, and what they leave out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from native_build.tools import OLDEST_TORCH
from versions import left_out, requirements

PROJECT = (requirements.ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (requirements.ROOT / "docs").glob("*.md")}


def test_every_declared_minimum_is_installed_or_named_as_not_tested() -> None:
    lists = re.findall(r"^\w+ = \[([^\]]*>=[^\]]*)\]", PROJECT, re.MULTILINE)
    listed = set(re.findall(r'"([\w-]+)[^"]*"', " ".join(lists)))
    installed = {re.split("[=;]", line)[0] for line in requirements.oldest()}
    assert listed == set(requirements.minima())
    assert listed - installed == set(requirements.NOT_TESTED)
    assert "torch==2.11" in requirements.oldest()


@pytest.mark.parametrize("name", ["torch", "triton", "setuptools"])
def test_the_newest_environment_takes_what_there_is(name: str) -> None:
    lines = [line for line in requirements.newest() if re.match(rf"{name}\b", line)]
    assert len(lines) == 1
    assert "=" not in lines[0].partition(";")[0]


def test_the_build_asks_for_the_declared_torch() -> None:
    assert requirements.minima()["torch"] == ".".join(map(str, OLDEST_TORCH))


def test_two_minima_of_a_package_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('["torch>=2.11"]\n["torch>=2.12"]\n')
    monkeypatch.setattr(requirements, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"^torch: pyproject.toml declares 2.11 and 2.12"):
        requirements.minima()


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_the_declared_minima(page: str) -> None:
    pattern = r"\b(torch|[Tt]riton|transformers|typer|setuptools)(?:>=| )(\d[\d.]*\d)(?: or newer|')"
    for name, version in re.findall(pattern, PAGES[page]):
        assert f"{requirements.minima()[name.lower()]}.".startswith(f"{version}."), name


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_what_is_left_out_is_there(which: str) -> None:
    found = left_out.left_out(which)
    assert all(path.exists() and reason for path, reason in found.items())


def test_what_compares_with_transformers_is_found() -> None:
    names = {path.name for path in left_out.compared_with_transformers()}
    assert {"test_rotation.py", "test_rope_utils.py"} <= names
    assert not {"test_patch_model.py", "test_apply.py"} & names
