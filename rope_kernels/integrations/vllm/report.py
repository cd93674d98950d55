"""What the plug-in replaced in this process, and why it left layers alone."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import RopeConfig

__all__ = ["LayerReport", "note", "report"]


@dataclass(frozen=True)
class LayerReport:
    """One kind of rotary layer of vLLM's.

    Attributes:
        kind: vLLM's class.
        config: what the layer rotates by; ``None`` if vLLM's own forward is kept.
        reason: why it is kept.
    """

    kind: str
    config: RopeConfig | None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.config!r}" if self.config else f"{self.kind}: vLLM's own ({self.reason})"


_found: dict[LayerReport, None] = {}


def note(kind: str, found: RopeConfig | str) -> None:
    """Remember a constructed layer: its config, or why there is none."""
    made = LayerReport(kind, None, found) if isinstance(found, str) else LayerReport(kind, found)
    _found[made] = None


def report() -> tuple[LayerReport, ...]:
    """The layers that vLLM has constructed in this process since :func:`register`, each kind and config once."""
    return tuple(_found)
