"""The Python of the pages that needs packages of engines runs; `tests/docs` runs the rest."""

from __future__ import annotations

import contextlib
import re

import pytest
from engines.torchvision_stand_in import torchvision_stand_in
from support.documents import ROOT, Block, blocks_of

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks_of(page, "with ")]


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_block_runs(block: Block) -> None:
    with torchvision_stand_in() if "import timm" in block.text else contextlib.nullcontext():
        block.run()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_with_a_title_says_with_what(page: str) -> None:
    titled = re.findall(r"^```python[^\n]+$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(titled) == len(blocks_of(page, "with "))
