"""One row of the benchmarks: two calls that alternate, and the result of timing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rope_kernels.backends import native, use_backend
from rope_kernels.measuring.forms import TimedCall
from rope_kernels.measuring.timing import Pair, alternate

from .shapes import Model, Shape

__all__ = ["BenchmarkRow", "RowResult", "facts_of", "measure"]


def facts_of(model: Model, shape: Shape, dtype: str, form: str, peer: str) -> dict[str, Any]:
    """The facts of a rotation of one shape; two rows with the same facts compare the same calls."""
    tokens = shape.batch * shape.tokens
    return dict(model=str(model), shape=str(shape), tokens=tokens, dtype=dtype, form=form, peer=peer)


@dataclass(frozen=True)
class BenchmarkRow:
    """Our call beside another one. Nothing is built until :func:`measure`.

    Attributes:
        group: the table of the report that shows it.
        name: unique; identifies the row in data files.
        build: makes and checks both calls; may raise :class:`peers.MissingPeerError`.
        needed: the budget, as a multiple of the peer's speed; ``None`` for no budget.
        threads: of each side.
        isa: our instruction set, if one is forced.
        backend: of our side, if one is chosen.
        facts: what tables and plots select and sort by: model, shape, tokens, dtype, form, peer, axis, size.
        timer: times the two calls for about the given seconds; :func:`alternate` if ``None``.
    """

    group: str
    name: str
    build: Callable[[], tuple[TimedCall, TimedCall]]
    needed: float | None = None
    threads: tuple[int, int] = (1, 1)
    isa: str = ""
    backend: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    timer: Callable[[TimedCall, TimedCall, float], Pair] | None = None

    def __str__(self) -> str:
        """The name."""
        return self.name


@dataclass(frozen=True)
class RowResult:
    """A measured row: median seconds per call, and the ratio of the two with its middle half (``low`` to ``high``)."""

    group: str
    name: str
    speed: float
    low: float
    high: float
    ours_seconds: float
    peer_seconds: float
    rounds: int
    needed: float | None
    facts: Mapping[str, Any]

    @property
    def met(self) -> bool | None:
        """Whether the row meets its budget; ``None`` if it has none."""
        return None if self.needed is None else self.speed >= self.needed

    @property
    def noise(self) -> float:
        """The width of the middle half of the ratios, relative to the ratio."""
        return (self.high - self.low) / self.speed

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(
    row: BenchmarkRow, seconds: float, then: Callable[[TimedCall, Pair], None] = lambda ours, pair: None
) -> RowResult:
    """Build, check and time a row for about ``seconds``; ``then`` can time our call further.

    Raises:
        MissingPeerError: the peer is not installed.
        AssertionError: the result of one side is wrong.
    """
    if row.isa:
        native.force_isa(row.isa)
    try:
        with use_backend(row.backend):
            ours, peer = row.build()
            pair = row.timer(ours, peer, seconds) if row.timer else alternate(ours, peer, seconds, row.threads)
            then(ours, pair)
    finally:
        native.force_isa("")
    low, high = pair.spread
    return RowResult(
        row.group, row.name, pair.speed, low, high, pair.medians[0], pair.medians[1], len(pair.ours), row.needed,
        dict(row.facts),
    )  # fmt: skip
