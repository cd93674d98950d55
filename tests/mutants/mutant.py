"""What a mutant is: a text in one file, what it becomes, and what that breaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutant", "in_file"]


@dataclass(frozen=True)
class Mutant:
    """One change to the sources.

    Attributes:
        area: which tests should notice: see :mod:`.suites`.
        file: in the repository.
        old: occurs in it exactly once.
        new: stands there instead.
        why: what is wrong with that.
    """

    area: str
    file: str
    old: str
    new: str
    why: str

    def applied(self, root: Path) -> str:
        """The mutated text of the file.

        Raises:
            ValueError: ``old`` is not there exactly once.
        """
        text = (root / self.file).read_text()
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.file}: {self.old!r} ({self.why}) is there {count} times, not once")
        return text.replace(self.old, self.new)


def in_file(area: str, file: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    """Mutants of one file: (old, new, why) each."""
    return [Mutant(area, file, *change) for change in changes]
