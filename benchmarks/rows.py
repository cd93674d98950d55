"""One comparison: two calls that alternate, and what is known of them. Nothing is built before it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ours import Call
from rope_kernels.backends import native
from rope_kernels.measuring.timing import Pair, alternate
from shapes import Model, Shape

__all__ = ["Result", "Row", "measured", "sorted_by"]


def sorted_by(model: Model, shape: Shape, dtype: str, form: str, peer: str) -> dict[str, Any]:
    """The facts of a rotation of one shape; two rows with the same facts are the same comparison."""
    tokens = shape.batch * shape.tokens
    return dict(model=str(model), shape=str(shape), tokens=tokens, dtype=dtype, form=form, peer=peer)


@dataclass(frozen=True)
class Row:
    """A comparison that can be made.

    Attributes:
        question: the table that it belongs to.
        name: unlike any other's.
        build: makes both calls, checked; may raise :class:`peers.MissingPeerError`.
        needed: the speed that is asked for, as a multiple of the peer's.
        threads: of each side.
        isa: our instruction set, if one is forced.
        facts: what tables and plots sort by: model, shape, tokens, dtype, form, peer, axis, size.
        timer: times the two calls for about so many seconds.
    """

    question: str
    name: str
    build: Callable[[], tuple[Call, Call]]
    needed: float | None = None
    threads: tuple[int, int] = (1, 1)
    isa: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    timer: Callable[[Call, Call, float], Pair] | None = None

    def __str__(self) -> str:
        """The name, which is the row's identity in data files."""
        return self.name


@dataclass(frozen=True)
class Result:
    """What was measured of a row: medians in seconds per call, and the ratio with the middle half of its rounds."""

    question: str
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
        """Whether the speed that is asked for was reached; ``None`` where none is."""
        return None if self.needed is None else self.speed >= self.needed

    @property
    def noise(self) -> float:
        """The middle half of the ratios, relative to the ratio."""
        return (self.high - self.low) / self.speed

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measured(row: Row, seconds: float, then: Callable[[Call, Pair], None] = lambda ours, pair: None) -> Result:
    """Build, check and time a row for about ``seconds``; ``then`` may time our call on.

    Raises:
        MissingPeerError: the peer is not installed.
        AssertionError: a side's result is wrong.
    """
    if row.isa:
        native.force_isa(row.isa)
    try:
        ours, peer = row.build()
        pair = row.timer(ours, peer, seconds) if row.timer else alternate(ours, peer, seconds, row.threads)
        then(ours, pair)
    finally:
        native.force_isa("")
    low, high = pair.spread
    return Result(
        row.question, row.name, pair.speed, low, high, pair.medians[0], pair.medians[1], len(pair.ours), row.needed,
        dict(row.facts),
    )  # fmt: skip
