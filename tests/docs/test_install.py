"""docs/install.md, environment.md, errors.md: variables that sources read, messages and commands that there are."""

from __future__ import annotations

import re

import pytest
from support.documents import ROOT

import rope_kernels

PAGE, VARIABLES, ERRORS = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("install", "environment", "errors")
)
SOURCES = [
    ROOT / "setup.py",
    *(ROOT / "native_build").glob("*.py"),
    *(ROOT / "rope_kernels").rglob("*.py"),
    *(ROOT / "csrc").rglob("*.cpp"),
    *(ROOT / "csrc").rglob("*.h"),
]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
READS = r'(?:environ\.get\(|environ\[|getenv\(|_switch\()"(\w+)"|^VARIABLE = "(\w+)"'
ELSEWHERE = {"unsupported GNU version", "cannot find -ltorch_cpu", "backend native"}
"""Words of compilers, and the first column of `rope-kernels info`."""


def rows_of(page):
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]


INSTALL = [row[0] for row in rows_of(PAGE)]
MESSAGES = [message for message in INSTALL[INSTALL.index("message") + 1 :] if message != "line"]
MESSAGES += [row[0] for row in rows_of(ERRORS) if ":" in row[0]]


def test_variables_are_those_that_are_read():
    read = {name for names in re.findall(READS, TEXT, re.MULTILINE) for name in names if name}
    assert read >= {"ROPE_KERNELS_BACKEND", "ROPE_KERNELS_NATIVE", "CXX"}
    assert {row[0].strip("`") for row in rows_of(VARIABLES) if re.fullmatch(r"`[A-Z_]+`", row[0])} == read


def test_every_way_of_reading_is_known():
    """A variable that is read in another way would be missed by the test above."""
    for path in SOURCES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"environ\b|getenv", line) and not line.lstrip().startswith(("//", "#", '"""')):
                assert re.search(r'environ(\.get\(|\[)("|name|VARIABLE)|getenv\("|environ \|', line), line


def test_no_other_variable_of_the_project_is_named_anywhere():
    known = {*re.findall(r"ROPE_KERNELS_[A-Z]+", VARIABLES)}
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / ".github" / "workflows" / "ci.yml"):
        assert {*re.findall(r"ROPE_KERNELS_[A-Z]+", path.read_text(encoding="utf-8"))} <= known, path


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_sources(message):
    """Part by part: what a message names is left out, and words by themselves."""
    parts = [part.strip() for part in re.split(r"\.\.\.|\d[\d.]*|[:;,=]|\bbut\b|--[\w-]+", message)]
    unknown = [part for part in parts if " " in part and part not in TEXT]
    assert not {*unknown} - ELSEWHERE


def test_commands_exist():
    makefile, project = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml"))
    for target in re.findall(r"`make ([\w-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for extras in re.findall(r"'\.\[([\w,]+)\]'", PAGE):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    assert f"dist/rope_kernels-{rope_kernels.__version__}.tar.gz" in PAGE
