"""Control flow: which threads are where.

Threads go in lockstep. Those that took different branches go on apart, the ones at the lowest statement first, and
together again where they meet. At a barrier threads wait until none can go on; then each CTA that waits must be there
with all its threads.
"""

from __future__ import annotations

import numpy as np

from .code import BARRIERS, Code, Step
from .errors import PTXError
from .machine import Machine
from .operands import Lanes

__all__ = ["Schedule"]

_NOBODY = np.empty(0, np.int64)


class Schedule:
    """One run of a machine through its code.

    Attributes:
        threads, warps: how often each step was executed.
    """

    def __init__(self, machine: Machine, code: Code, limit: int) -> None:
        self.machine, self.code, self.limit = machine, code, limit
        self.ready: dict[int, list[Lanes]] = {0: [None]}
        self.waiting: dict[int, list[Lanes]] = {}
        self.threads, self.warps = (np.zeros(len(code.steps), np.int64) for _ in range(2))

    def run(self) -> None:
        """Until all threads have left.

        Raises:
            PTXError: a check failed, threads wait for others that never come, or more than ``limit`` steps were taken.
        """
        while self.ready or self.waiting:
            if not self.ready:
                self._release()
            place = min(self.ready)
            lanes = self._together(self.ready.pop(place))
            if place < len(self.code.steps):
                self._go_on(place, lanes)

    def _together(self, groups: list[Lanes]) -> Lanes:
        if len(groups) == 1:
            return groups[0]
        lanes = np.sort(np.concatenate([group for group in groups if group is not None]))
        return None if lanes.size == self.machine.size else lanes

    def _go_on(self, place: int, lanes: Lanes) -> None:
        """Through a straight piece of code, and what ends it."""
        end = self.code.ends[place]
        meets = end == len(self.code.steps) or (end > place and end in self.code.meetings)
        control = None if meets else self.code.steps[end]
        after = end if control is None else end + 1
        self.limit -= after - place
        if self.limit < 0:
            raise PTXError(f"{self.machine.kernel.name}: more steps than allowed: an endless loop?")
        self.threads[place:after] += self.machine.count(lanes)
        self.warps[place:after] += self.machine.warps(lanes)
        self._straight(place, end, lanes)
        if control is None:
            self._send(end, lanes)
        elif control.statement.name in BARRIERS:
            self.waiting.setdefault(end, []).append(lanes)
        else:
            taken, rest = self._divided(control, lanes)
            self._send(len(self.code.steps) if control.target is None else control.target, taken)
            self._send(end + 1, rest)

    def _straight(self, place: int, end: int, lanes: Lanes) -> None:
        steps, machine = self.code.steps, self.machine
        try:
            for place in range(place, end):  # noqa: B020  the message below needs the place
                step = steps[place]
                if step.guard is None:
                    step.execute(machine, lanes)
                else:
                    active = self._divided(step, lanes)[0]
                    if active is None or active.size:
                        step.execute(machine, active)
        except PTXError as error:
            raise PTXError(f"{machine.kernel.name}: {steps[place].statement.text}: {error}") from error

    def _divided(self, step: Step, lanes: Lanes) -> tuple[Lanes, Lanes]:
        """(threads that the step's guard lets through, the others)."""
        if step.guard is None:
            return lanes, _NOBODY
        through = step.guard(self.machine, lanes)
        if through.all():
            return lanes, _NOBODY
        if not through.any():
            return _NOBODY, lanes
        parts = (np.flatnonzero(through), np.flatnonzero(~through))
        return parts if lanes is None else (lanes[parts[0]], lanes[parts[1]])

    def _send(self, place: int, lanes: Lanes) -> None:
        if lanes is None or lanes.size:
            self.ready.setdefault(place, []).append(lanes)

    def _release(self) -> None:
        machine = self.machine
        for place, groups in self.waiting.items():
            lanes = self._together(groups)
            there = np.bincount(machine.cta if lanes is None else machine.cta[lanes])
            ctas = np.flatnonzero(there)
            if (there[ctas] != machine.grid.threads).any():
                raise PTXError(f"{machine.kernel.name}: barrier deadlock: some threads of a CTA never reach a barrier")
            machine.barrier(ctas)
            self.ready[place + 1] = [lanes]
        self.waiting = {}
