"""The list of mutants does not rot: each still changes the sources, in one place. Running them is `make mutants`."""

import re
from pathlib import Path

import pytest

from mutants.catalogue import MUTANTS
from mutants.mutant import KINDS
from mutants.suites import SUITES

ROOT = Path(__file__).parents[2]
KERNELS = [
    *(ROOT / "csrc" / "cuda").glob("*.cu*"), *(ROOT / "csrc" / "cpu").glob("*.h"),
    *(ROOT / "rope_kernels" / "backends" / "triton").glob("*.py"),
]  # fmt: skip
WITHOUT = {"rotate.h", "vectors.h", "prefetch.h", "scratch.h", "__init__.py"}
"""Declarations, types, and prefetches, which change no result."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{Path(m.file).name}: {m.why}")
def test_mutant_applies(mutant):
    assert mutant.applied(ROOT) != (ROOT / mutant.file).read_text()


def test_mutants_are_different():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_every_kernel_and_header_has_a_mutant():
    files = {mutant.file for mutant in MUTANTS if mutant.kind != "rule"}
    kernels = {str(path.relative_to(ROOT)) for path in KERNELS if path.name not in WITHOUT}
    assert len(kernels) > 15
    assert not kernels - files


def test_kinds_and_areas_are_those_of_the_lists():
    assert {mutant.kind for mutant in MUTANTS} == KINDS.keys()
    assert {mutant.area for mutant in MUTANTS} == SUITES.keys()
    text = (Path(__file__).parent / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(KINDS)
