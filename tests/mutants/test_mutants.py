"""The list of mutants does not rot: each still changes the sources, in one place. Running them is `make mutants`."""

from pathlib import Path

import pytest

from mutants.catalogue import MUTANTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{Path(m.file).name}: {m.why}")
def test_mutant_applies(mutant):
    assert mutant.applied(ROOT) != (ROOT / mutant.file).read_text()


def test_mutants_are_different():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
