"""The folders keep their rules: imports run one way, and csrc's lower folders know nothing of torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rope_kernels"
CSRC = ROOT / "csrc"
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())

FORBIDDEN = {
    "core": {*FOLDERS, "environment"} - {"core"},
    "backends": {"config", "ops", "api", "integrations", "measuring", "cli", "environment"},
    "config": {"backends", "ops", "api", "integrations", "measuring", "cli", "environment"},
    "ops": {"config", "api", "integrations", "measuring", "cli", "environment"},
    "api": {"backends", "integrations", "measuring", "cli", "environment"},
    "environment": {"api", "integrations", "measuring", "cli"},
    "integrations": {"ops", "backends", "measuring", "cli"},
    "measuring": {"cli", "integrations"},
    "cli": set(),
}
"""What each folder must not import directly. CONTRIBUTING.md says why."""

CSRC_ALLOWED = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "ops": {"core", "cpu", "cuda", "ops"},
    "direct": {"core", "ops", "direct"},
}
"""Whose headers each folder of csrc may include."""


def module_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, package: Path = PACKAGE) -> set[str]:
    """The package's own modules that a file imports, by absolute name, wherever in the file."""
    module, found = module_of(path, package), set()
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == package.name}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] == package.name:
                found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    return found


def room_of(module: str) -> str:
    """The folder, or the module that lies beside the folders; the package itself is ``""``."""
    return module.split(".")[1] if "." in module else ""


def broken_rules(path: Path, package: Path = PACKAGE) -> list[str]:
    room = room_of(module_of(path, package))
    return [
        f"{path.relative_to(package.parent)} imports {module}, and {room} must not import {room_of(module)}"
        for module in sorted(imports_of(path, package))
        if room_of(module) in FORBIDDEN.get(room, set())
    ]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    assert not broken_rules(path)


@pytest.mark.parametrize(
    ("file", "line", "room"),
    [
        ("core/rotation.py", "from ..config import RopeConfig", "config"),
        ("config/config.py", "import rope_kernels.ops.operators", "ops"),
        ("backends/reference.py", "from ..ops import direct", "ops"),
        ("ops/autograd.py", "def late():\n    from ..api.checks import check_qk", "api"),
        ("api/apply.py", "from .. import backends", "backends"),
        ("integrations/transformers/hub.py", "from ...ops.direct import rotate", "ops"),
        ("measuring/models.py", "from rope_kernels import cli", "cli"),
        ("environment.py", "from .api.apply import apply_rope", "api"),
    ],
)
def test_a_broken_rule_is_noticed(tmp_path: Path, file: str, line: str, room: str) -> None:
    package = tmp_path / "rope_kernels"
    path = package / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert any(said.endswith(f"must not import {room}") for said in broken_rules(path, package))


def test_every_folder_has_a_rule() -> None:
    assert {*FOLDERS, "environment"} == FORBIDDEN.keys()
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == CSRC_ALLOWED.keys()


def test_modules_import_each_other_in_no_circle() -> None:
    known = {module_of(path, PACKAGE): path for path in SOURCES}
    graph = {name: {m for m in imports_of(path) if m in known} - {name} for name, path in known.items()}
    # A package's __init__ imports its modules; that they can be imported through it closes no circle of files.
    graph = {name: {m for m in found if not name.startswith(f"{m}.")} for name, found in graph.items()}
    while free := {name for name, found in graph.items() if not found}:
        graph = {name: found - free for name, found in graph.items() if name not in free}
    assert not graph


def test_few_modules_lie_beside_the_folders() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


HEADERS = sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")])
CPP = sorted([*HEADERS, *CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu")])


def included(path: Path) -> list[str]:
    """The files of csrc that a file includes, by their path below it."""
    found = []
    for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
        beside = (path.parent / name).resolve()
        found.append(str((beside if beside.exists() else CSRC / name).relative_to(CSRC)))
    return found


@pytest.mark.parametrize("path", CPP, ids=lambda path: str(path.relative_to(CSRC)))
def test_folders_of_csrc_include_downwards(path: Path) -> None:
    folder = path.relative_to(CSRC).parts[0]
    others = {name for name in included(path) if name.split("/")[0] not in CSRC_ALLOWED[folder]}
    assert not others
    if folder in ("core", "cpu"):
        assert not re.search(r"#include <(torch|Python|cuda)", path.read_text())


DEFINITION = re.compile(
    r"^(?:template <[^\n]*>\n)?(?:struct|class|enum class)(?: alignas\(\d+\))? (\w+)\b(?=[^;]*\{)"
    r"|^constexpr [\w:]+ (k\w+)|^using (\w+) =|^(?:\[\[nodiscard\]\] )?(?:inline |ROPE_INLINE |ROPE_HD |__device__ )+"
    r"[\w:<>&*, ]+?[ &*](\w+)\(|^#define (\w+)",
    re.M,
)


def defined(path: Path) -> set[str]:
    """Names that a header gives to others, as far as its layout on the page tells."""
    return {name for match in DEFINITION.finditer(path.read_text()) for name in match.groups() if name}


def used(path: Path) -> set[str]:
    text = re.sub(r'//[^\n]*|"(\\.|[^"\\])*"', "", path.read_text())
    return set(re.findall(r"\b\w+\b", text))


GIVEN = {str(path.relative_to(CSRC)): defined(path) for path in HEADERS}
GIVERS = {name: [h for h, names in GIVEN.items() if name in names] for names in GIVEN.values() for name in names}


@pytest.mark.parametrize("path", CPP, ids=lambda path: str(path.relative_to(CSRC)))
def test_files_include_what_they_use(path: Path) -> None:
    own, direct = str(path.relative_to(CSRC)), set(included(path))
    missing = {
        f"{name} of {GIVERS[name][0]}"
        for name in used(path) & GIVERS.keys() - GIVEN.get(own, set())
        if len(GIVERS[name]) == 1 and GIVERS[name][0] not in direct and _reaches(path, GIVERS[name][0])
    }
    assert not missing


def _reaches(path: Path, header: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether ``header`` comes with what a file includes: otherwise a name of its own is meant."""
    names = set(included(path)) - seen
    return header in names or any(_reaches(CSRC / name, header, seen | names) for name in names)


def test_headers_define_something() -> None:
    assert sum(map(len, GIVEN.values())) > 100
    assert {"Job", "Operand"} <= GIVEN["core/job.h"]
    assert "kBlockTokens" in GIVEN["cpu/scratch.h"]
    assert "prefetch_head" in GIVEN["cpu/prefetch.h"]
