"""Room that lower classes leave for requests of higher ones that are likely to come.

A request of a higher class that finds a full engine can only wait, or push out running requests, whose computed tokens
are then lost. Where such requests keep coming, the place of one that has ended is better left free for the next.
How many of a class are usual is their time-weighted mean number plus `DEVIATIONS` standard deviations, over the last minute or two; what
is left free is never more than `LARGEST_SHARE` of the engine, so that a burst which has passed costs little.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

MEMORY_S = 60.0
"""Seconds after which the weight of a moment is 1/e."""

DEVIATIONS = 3.0
"""Standard deviations beyond the mean number that still find room."""

LARGEST_SHARE = 0.1
"""Largest share of memory and of slots that is left free."""

NEED_MEMORY = 0.05
"""Weight of the newest request in the running mean of a class's need."""

MOST_CLASSES = 8
"""Classes whose numbers are followed; clients may name any, and those beyond find no room left free."""

_LEAST_MEAN = 0.01
"""Mean number below which a class without requests is forgotten."""


@dataclass(slots=True)
class _Usual:
    """Fading moments of a class's number of unfinished requests, and the mean of what each needs."""

    mean: float = 0.0
    square: float = 0.0
    need_blocks: float = 0.0

    @property
    def number(self) -> float:
        return self.mean + DEVIATIONS * math.sqrt(max(0.0, self.square - self.mean * self.mean))


class ClassHeadroom:
    """Follows the numbers of unfinished requests of each class.

    >>> headroom = ClassHeadroom()
    >>> headroom.enter(0), headroom.enter(0), headroom.enter(1)
    (None, None, None)
    >>> for second in range(1000):
    ...     headroom.observe(float(second))
    >>> headroom.started(0, 10.0)
    >>> headroom.leave(0)
    >>> [round(room, 1) for room in headroom.above(1, blocks=1000, slots=64)]
    [10.0, 1.0]
    >>> headroom.above(0, blocks=1000, slots=64)
    (0.0, 0.0)
    """

    def __init__(self) -> None:
        self._unfinished: Counter[int] = Counter()
        self._usual: dict[int, _Usual] = {}
        self._observed_s = math.nan

    def enter(self, priority: int) -> None:
        """Count a request that entered the engine."""
        self._unfinished[priority] += 1

    def leave(self, priority: int) -> None:
        """Count a request that left it, or that can never run."""
        self._unfinished[priority] -= 1
        if not self._unfinished[priority]:
            del self._unfinished[priority]

    def observe(self, now_s: float) -> None:
        """Take the present numbers for those since the last call."""
        passed_s, self._observed_s = now_s - self._observed_s, now_s
        if not passed_s > 0.0 or (len(self._unfinished) < 2 and not self._usual):
            return
        weight = -math.expm1(-passed_s / MEMORY_S)
        for priority in self._unfinished.keys() - self._usual.keys():
            if len(self._usual) < MOST_CLASSES:
                self._usual[priority] = _Usual()
        for priority, usual in list(self._usual.items()):
            number = self._unfinished[priority]
            usual.mean += weight * (number - usual.mean)
            usual.square += weight * (number * number - usual.square)
            if not number and usual.mean < _LEAST_MEAN:
                del self._usual[priority]

    def started(self, priority: int, need_blocks: float) -> None:
        """Take in what a request needed that was admitted."""
        usual = self._usual.get(priority)
        if usual is not None:
            weight = NEED_MEMORY if usual.need_blocks else 1.0
            usual.need_blocks += weight * (need_blocks - usual.need_blocks)

    def above(self, priority: int, *, blocks: float, slots: int) -> tuple[float, float]:
        """Return the blocks and slots that a class leaves free for the classes above it.

        Args:
            priority: The class; a lower number is a higher class.
            blocks: KV blocks of the engine.
            slots: Requests that it can run at once.
        """
        missing_blocks = missing = 0.0
        for other, usual in self._usual.items():
            if other < priority:
                more = max(0.0, usual.number - self._unfinished[other])
                missing += more
                missing_blocks += more * usual.need_blocks
        return min(missing_blocks, LARGEST_SHARE * blocks), min(missing, LARGEST_SHARE * slots)
