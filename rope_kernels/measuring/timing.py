"""Reliable speed ratios: two calls alternate in one process, and each round is compared with its neighbour."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Pair", "alternate"]


@dataclass
class Pair:
    """Seconds per call of two sides that alternated."""

    ours: list[float]
    peer: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds per call, ours and the peer's."""
        return statistics.median(self.ours), statistics.median(self.peer)

    @property
    def speed(self) -> float:
        """How many times as fast as the peer our call is: the median ratio of neighbouring rounds."""
        return statistics.median(self._ratios())

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of those ratios."""
        ratios = self._ratios()
        return ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]

    def _ratios(self) -> list[float]:
        return sorted(b / a for a, b in zip(self.ours, self.peer, strict=True))


def _per_call(call: Callable[[], object], repeats: int, wait: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def alternate(
    ours: Callable[[], object],
    peer: Callable[[], object],
    seconds: float = 2.0,
    threads: tuple[int, int] = (1, 1),
    wait: Callable[[], object] = lambda: None,
) -> Pair:
    """Time ``ours`` and ``peer`` alternately for about ``seconds``; a round repeats short calls.

    Args:
        ours: one side.
        peer: the other.
        seconds: of all rounds together.
        threads: of each side. If they differ, an untimed call first lets torch rebuild its threads.
        wait: returns once the device has finished its work.
    """

    def set_threads(count: int, call: Callable[[], object]) -> None:
        if count != torch.get_num_threads():
            torch.set_num_threads(count)
            call()

    repeats = []
    for call, count in zip((ours, peer), threads, strict=True):
        torch.set_num_threads(count)
        call()
        wait()
        once = min(_per_call(call, 1, wait) for _ in range(3))
        repeats.append(max(1, int(2e-3 / once)))
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for call, count, into, side in zip((ours, peer), repeats, times, threads, strict=True):
            set_threads(side, call)
            into.append(_per_call(call, count, wait))
    return Pair(*times)
