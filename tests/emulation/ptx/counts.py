"""What a launch executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Counts"]


@dataclass
class Counts:
    """Figures of one launch.

    Attributes:
        instructions: by full name, how often threads came by an instruction, whether or not its guard let them.
        warp_instructions: the same for warps, of which one instruction may serve several threads: what is issued.
        statements: how often threads came by each statement of the kernel.
        loads, stores: of global memory, how often threads accessed so many bytes at once.
        sectors: 32-byte sectors of global memory that warps touched, by "load" and "store".
    """

    instructions: Counter[str] = field(default_factory=Counter)
    warp_instructions: Counter[str] = field(default_factory=Counter)
    statements: list[int] = field(default_factory=list)
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)

    def add_statements(self, names: list[str], threads: list[int], warps: list[int]) -> None:
        """Take in how often each statement was come by, and what its name is."""
        self.statements = threads
        for name, by_threads, by_warps in zip(names, threads, warps, strict=True):
            if by_threads:
                self.instructions[name] += by_threads
                self.warp_instructions[name] += by_warps

    def per_element(self, elements: int) -> Iterator[tuple[str, float]]:
        """Executed thread instructions per element, the most frequent first."""
        return ((name, count / elements) for name, count in self.instructions.most_common())
