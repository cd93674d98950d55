"""What :func:`patch_model` did to each module, and why not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Entry", "PatchReport"]

_ACTIONS = ("angles", "rotation", "tables", "left alone")


@dataclass(frozen=True)
class Entry:
    """One module.

    Attributes:
        module: its name in the model.
        kind: its class.
        action: "angles" (a rotary embedding that hands on positions), "rotation" (a module whose apply function is
            replaced), "tables" (a rotary embedding whose own tables are kept, for the table kernel), "left alone".
        what: what was replaced: a method, or the apply functions that a method calls.
        convention: how the pairs lie, or what the frequencies are.
        reason: why the module was left alone, or its tables kept.
    """

    module: str
    kind: str
    action: str
    what: str = ""
    convention: str = ""
    reason: str = ""

    def line(self) -> str:
        """For the text of a report, without the module's name."""
        parts = [self.action, self.what, self.convention and f"[{self.convention}]", self.reason and f"({self.reason})"]
        return f"{self.kind}: {' '.join(part for part in parts if part)}"


@dataclass(frozen=True)
class PatchReport:
    """What was replaced by what, module by module; ``print`` it.

    Attributes:
        entries: one per rotary embedding and per module that calls an apply function.
    """

    entries: tuple[Entry, ...]

    @property
    def patched(self) -> tuple[Entry, ...]:
        """The modules that were changed."""
        return tuple(entry for entry in self.entries if entry.action in ("angles", "rotation"))

    @property
    def tables(self) -> tuple[Entry, ...]:
        """The rotary embeddings whose own tables go to the table kernel, each with the reason."""
        return tuple(entry for entry in self.entries if entry.action == "tables")

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """The modules that were not, each with its reason."""
        return tuple(entry for entry in self.entries if entry.action == "left alone")

    def __str__(self) -> str:
        """A line per module; layers that only differ by number share one."""
        lines = [f"{name}  {line}" for name, line in _grouped(self.entries)]
        counts = ", ".join(f"{Counter(e.action for e in self.entries)[action]} {action}" for action in _ACTIONS)
        return "\n".join([*lines, counts])


def _grouped(entries: tuple[Entry, ...]) -> Iterator[tuple[str, str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((re.sub(r"\d+", "*", entry.module), entry.line()), []).append(entry.module)
    for (pattern, line), names in groups.items():
        yield (names[0] if len(names) == 1 else f"{pattern} ({len(names)})"), line
