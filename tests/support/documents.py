"""The Python of a document, as tests run it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["ROOT", "Block", "blocks_of"]

ROOT = Path(__file__).parents[2]


class Block:
    """A fenced block of Python: where it is, and its text."""

    def __init__(self, file: str, number: int, text: str) -> None:
        self.name, self.text = f"{file}, block {number}", text

    def run(self, **given: object) -> None:
        """Execute it as a module of its own, which torch.compile may import by its name; it has the names ``given``."""
        module = ModuleType("document")
        module.__dict__.update(given)
        sys.modules[module.__name__] = module
        try:
            exec(compile(self.text, self.name, "exec"), module.__dict__)
        finally:
            del sys.modules[module.__name__]

    def __repr__(self) -> str:
        return self.name


def blocks_of(file: str, title: str = "") -> list[Block]:
    """The blocks of a file of the repository, in order: those without a title, or those whose title begins so."""
    text = (ROOT / file).read_text(encoding="utf-8")
    kind = rf' title="{re.escape(title)}[^"\n]*"' if title else ""
    found = re.findall(rf"^```python{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(file, number, block) for number, block in enumerate(found, 1)]
