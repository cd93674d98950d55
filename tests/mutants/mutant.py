"""What a mutant is: a text in one file, what it becomes, and what that breaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Mutant", "in_file"]

KINDS = {
    "sign": "a sine, a shift or a difference has the wrong sign",
    "bound": "one too many or one too few: a comparison, a last element, a threshold",
    "stride": "an address, a distance or a place in a row is wrong",
    "mask": "elements that a mask or a flag keeps out come in, or the reverse",
    "order": "a barrier is gone, or something is written before others have read it",
    "dropped": "a term or a factor is missing",
    "operand": "the other one of two values is taken",
    "branch": "a special case is taken for the general one, or the reverse",
    "precision": "bits are lost: a rounding, a term of the phase, a NaN",
    "width": "an integer is too narrow",
    "state": "something is kept too long, shared, freed, or not counted as a new version",
    "refusal": "a call or a text that must be refused is taken",
    "rule": "a folder imports or includes what it must not",
}
"""The kinds of mistakes. Each file has at most a few of a kind, where they are in different code paths."""


@dataclass(frozen=True)
class Mutant:
    """One change to the sources.

    Attributes:
        area: which tests should notice: see :mod:`.suites`.
        file: in the repository.
        kind: one of :data:`KINDS`.
        old: occurs in it exactly once.
        new: stands there instead.
        why: what is wrong with that.
    """

    area: str
    file: str
    kind: str
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


def in_file(area: str, file: str, *changes: tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants of one file: (kind, old, new, why) each."""
    return [Mutant(area, file, *change) for change in changes]
