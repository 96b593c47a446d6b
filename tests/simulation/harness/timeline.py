"""Simulated time: one heap of events, in a total order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush


class Crash(BaseException):
    """A process dies at this very point; no handler of errors may catch it."""


@dataclass(eq=False)
class Timeline:
    """Runs actions at their time; those of one moment in the order in which they were entered."""

    now_s: float = 0.0
    events: int = 0
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _serial: int = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Have something happen at a moment, at once if that has passed."""
        self._serial += 1
        heappush(self._heap, (max(time_s, self.now_s), self._serial, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have something happen after a while."""
        self.at(self.now_s + delay_s, action)

    def run(self, until_s: float) -> None:
        """Let time go on until a moment."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, action = heappop(self._heap)
            self.events += 1
            action()
        self.now_s = until_s
