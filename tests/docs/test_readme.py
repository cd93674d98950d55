"""The README's Python runs, and what it says of files and commands is so."""

from __future__ import annotations

import re

import pytest
from support.documents import ROOT, blocks_of

import rope_kernels
from rope_kernels.measuring import catalog, models

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks_of("README.md")


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_block_runs(block):
    block.run()


def test_there_are_blocks():
    assert BLOCKS


def test_every_public_name_is_listed():
    listed = set(re.findall(r"\w+", README))
    names = set(rope_kernels.__all__) - {
        "FrequencyParams",
        "RopeBackendWarning",
        "RopeConfigWarning",
        "RopeTableWarning",
        "__version__",
    }
    assert names <= listed
    assert {name for name, kind in rope_kernels.ROPE_TYPES.items() if kind.builtin} - {"inv_freq"} <= listed


def test_the_table_has_a_row_for_every_case():
    labels = [case.label for case in models.shipped_layers()]
    assert [line.split("  ")[0].strip() for line in README.splitlines() if re.search(r"\d/\d+x\d", line)] == labels
    assert {label.split()[0] for label in labels} == set(catalog.names())


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
