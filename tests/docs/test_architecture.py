"""docs/architecture.md: the files and names on the page exist, every folder is on it, and its answers are right."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.documents import ROOT

import rope_kernels as rk
from rope_kernels.cli import demo_report
from rope_kernels.cli.demo import DemoRow

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE, CSRC = ROOT / "rope_kernels", ROOT / "csrc"
SUFFIXES = "py|h|cuh|cu|cpp|md"
REFERENCES = sorted(set(re.findall(rf"(?<![\w/.(])([\w/]+\.(?:{SUFFIXES}))(?:::(\w+))?", PAGE)))


def file_of(path: str) -> Path:
    """The file that a path on the page means."""
    return ROOT / path if (ROOT / path.split("/")[0]).exists() else PACKAGE / path


def names_of_python(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def bodies_in_cpp(text: str, name: str) -> list[str]:
    """Definitions of a function or type, each from its name on."""
    starts = re.finditer(
        rf"(?m)^(?!.*\breturn\b)(?:__global__ void __launch_bounds__\(.*\) |[^\n/(=]*?)\b{name}\b(?=[\s({{])[^;{{]*{{",
        text,
    )
    return [text[match.start() :] for match in starts]


def test_the_page_names_files_and_names() -> None:
    assert len(REFERENCES) > 80
    assert sum(bool(name) for _, name in REFERENCES) > 50


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=lambda x: x or "file")
def test_what_the_page_names_is_there(path: str, name: str) -> None:
    file = file_of(path)
    assert file.is_file(), path
    if name:
        text = file.read_text(encoding="utf-8")
        found = name in names_of_python(text) if file.suffix == ".py" else bodies_in_cpp(text, name)
        assert found, f"{path} defines no {name}"


def test_a_name_that_is_only_used_is_not_defined() -> None:
    assert not bodies_in_cpp((CSRC / "cuda" / "kernel.cu").read_text(), "rotate_apart")
    assert "pairs" not in names_of_python((PACKAGE / "ops" / "autograd.py").read_text())


def test_every_folder_is_on_the_page() -> None:
    package = {p.parent for p in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    csrc = {p.parent for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}}
    names = {str(p.relative_to(PACKAGE)) for p in package} | {str(p.relative_to(ROOT)) for p in csrc}
    assert {"core", "backends/triton", "csrc/cpu/isa"} <= names
    table = PAGE.split("## The folders")[1].split("\n## ")[0]
    assert not names - set(re.findall(r"`([\w/]+)`", table))


ANSWERS = {
    question: set(re.findall(rf"`([\w/]+\.(?:{SUFFIXES}))(?:::(\w+))?`", answer))
    for question, answer in re.findall(r"(?m)^\| (.*?) \| (.*?) \| `pytest .*` \|$", PAGE)
}


def test_the_tests_to_run_exist() -> None:
    for command in re.findall(r"`pytest (.*?)`", PAGE):
        assert all((ROOT / path).exists() for path in command.split()), command


def test_where_the_yarn_formula_is() -> None:
    assert ("config/rope_types.py", "_yarn") in ANSWERS["the YaRN formula"]
    function = rk.ROPE_TYPES["yarn"].fn
    assert function.__name__ == "_yarn"
    assert Path(function.__code__.co_filename) == PACKAGE / "config" / "rope_types.py"


def test_where_cuda_stores_are() -> None:
    answers = {("csrc/cuda/tiles.cuh", "store"), ("csrc/cuda/rows.cuh", "store_unit")}
    assert answers == ANSWERS["a CUDA store"]
    stores = r"\*reinterpret_cast<\w+\*>\([^;]*\) = "  # through a pointer that is not const
    bodies = [body for file, name in answers for body in bodies_in_cpp((ROOT / file).read_text(), name)]
    there = "".join(re.split(r"\n(?:  )?}\n", body)[0] for body in bodies)
    every = [found for file in (CSRC / "cuda").glob("*.cu*") for found in re.findall(stores, file.read_text())]
    assert len(every) == 5
    assert sorted(every) == sorted(re.findall(stores, there))


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "a shape": (
        lambda: rk.apply_rope(torch.zeros(1, 2, 1, 8), None, None, rk.RopeConfig(head_dim=64)),
        "api/checks.py",
    ),
    "two arguments": (
        lambda: rk.apply_rope_(torch.zeros(1, 2, 1, 8), None, torch.arange(2), rk.RopeConfig(head_dim=8), offset=1),
        "api/prepare.py",
    ),
    "a config": (lambda: rk.RopeConfig(head_dim=64, rope_type="linear", factor=-1.0), "config/validation.py"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_where_errors_are_worded(mistake: str) -> None:
    call, path = MISTAKES[mistake]
    assert (path, "") in ANSWERS["an error message"]
    with pytest.raises(ValueError, match=":") as caught:
        call()
    assert Path(traceback.extract_tb(caught.tb)[-1].filename) == PACKAGE / path


def test_where_the_demo_table_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {("cli/demo_report.py", "_COLUMNS"), ("cli/demo_report.py", "demo_report")} == ANSWERS["the demo's table"]
    assert Path(demo_report.__file__) == PACKAGE / "cli" / "demo_report.py"
    monkeypatch.setattr(demo_report, "_COLUMNS", demo_report._COLUMNS[:2])
    machine = {"torch": "", "cuda_device": None, "processor": "", "threads": 1}
    rows: list[DemoRow] = []
    table = demo_report.demo_report(rows, machine).renderables[0]
    assert [column.header for column in table.columns] == ["model", "rope type"]
