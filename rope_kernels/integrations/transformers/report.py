"""PatchReport: what :func:`patch_model` replaced in each module, and why it skipped others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Entry", "PatchReport"]

_SKIPPED = "left alone"


@dataclass(frozen=True)
class Entry:
    """The report on one module.

    Attributes:
        module: its name in the model.
        kind: its class.
        action: "angles" (a rotary embedding that returns positions), "rotation" (a module whose apply functions are
            replaced), "tables" (a rotary embedding whose own tables are kept, for the table kernel), "left alone"
            (skipped); with ``fuse_norms`` also "norms fused" (a module whose rotation norms q and k) and "norms left"
            (one whose own norms are kept).
        what: the replaced method, the replaced apply functions that a method calls, or the norms.
        convention: the pairing of the channels, the rope type of the frequencies, or where and how the norms norm.
        reason: why the module was skipped, or why its tables or norms are kept.
    """

    module: str
    kind: str
    action: str
    what: str = ""
    convention: str = ""
    reason: str = ""

    def line(self) -> str:
        """The module's line in the report, without its name."""
        action = "skipped" if self.action == _SKIPPED else self.action
        parts = [action, self.what, self.convention and f"[{self.convention}]", self.reason and f"({self.reason})"]
        return f"{self.kind}: {' '.join(part for part in parts if part)}"


@dataclass(frozen=True)
class PatchReport:
    """What was replaced in each module, and why others were skipped; ``print`` it.

    Attributes:
        entries: one per rotary embedding and per module that calls an apply function; with ``fuse_norms`` one more for
            each such module with norms.
    """

    entries: tuple[Entry, ...]

    @property
    def patched(self) -> tuple[Entry, ...]:
        """The modules that were changed."""
        return tuple(entry for entry in self.entries if entry.action in ("angles", "rotation"))

    @property
    def tables(self) -> tuple[Entry, ...]:
        """The rotary embeddings whose own tables are used by the table kernel, each with the reason."""
        return tuple(entry for entry in self.entries if entry.action == "tables")

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """The modules that were skipped, each with its reason."""
        return tuple(entry for entry in self.entries if entry.action == _SKIPPED)

    @property
    def norms_fused(self) -> tuple[Entry, ...]:
        """The modules whose norms are fused with the rotation."""
        return tuple(entry for entry in self.entries if entry.action == "norms fused")

    @property
    def norms_left(self) -> tuple[Entry, ...]:
        """The modules whose own norms are kept, each with the reason."""
        return tuple(entry for entry in self.entries if entry.action == "norms left")

    def __str__(self) -> str:
        """A line per module, and the counts; layers that differ only by number share a line."""
        lines = [f"{name}  {line}" for name, line in _grouped(self.entries)]
        count = Counter(entry.action for entry in self.entries)
        embeddings = f"{count['angles']} rotary embedding{'' if count['angles'] == 1 else 's'}"
        layers = f"{count['rotation']} attention layer{'' if count['rotation'] == 1 else 's'} (fused)"
        others = f"{count['tables']} via cos/sin tables; {count[_SKIPPED]} skipped"
        normed = f"; norms fused in {count['norms fused']}, left in {count['norms left']}"
        has_norms = self.norms_fused or self.norms_left
        return "\n".join([*lines, f"patched: {embeddings}, {layers}; {others}{normed if has_norms else ''}"])


def _grouped(entries: tuple[Entry, ...]) -> Iterator[tuple[str, str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((re.sub(r"\d+", "*", entry.module), entry.line()), []).append(entry.module)
    for (pattern, line), names in groups.items():
        yield (names[0] if len(names) == 1 else f"{pattern} ({len(names)})"), line
