"""Room that lower classes leave for requests of higher ones that are likely to come.

A request of a higher class that finds a full engine can only wait, or push out running requests, whose computed tokens
are then lost. Where such requests keep coming, the place of one that has ended is better left free for the next.
How many of a class are usual is their mean number over the last minute or two plus `DEVIATIONS` standard deviations.
What is left free is never more than `LARGEST_SHARE` of the engine, and nothing for a class of which none has come for
`LONGEST_GAPS` mean gaps, so that a burst which has passed costs little.
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

LONGEST_GAPS = 5.0
"""Mean times between arrivals after which a class counts as gone: of random arrivals one gap in 150 is longer."""

GAP_MEMORY = 0.1
"""Least weight of the newest gap in the mean of the gaps."""

_LEAST_MEAN = 0.01
"""Mean number below which a class without requests is forgotten."""


@dataclass(slots=True)
class _Usual:
    """Fading moments of a class's number of unfinished requests, and the mean of what each needs."""

    mean: float = 0.0
    square: float = 0.0
    need_blocks: float = 0.0
    came_s: float = 0.0
    """When the latest of the class arrived."""
    gaps: int = 0
    gap_s: float = MEMORY_S
    """Mean of the time between two arrivals, fading once there are ten; a guess before the second."""

    def came(self, arrival_s: float) -> None:
        """Take in an arrival."""
        self.gaps += 1
        self.gap_s += max(GAP_MEMORY, 1.0 / self.gaps) * (max(0.0, arrival_s - self.came_s) - self.gap_s)
        self.came_s = max(self.came_s, arrival_s)

    def comes(self, now_s: float) -> bool:
        """Whether the next one is still to be expected."""
        return now_s - self.came_s <= LONGEST_GAPS * self.gap_s

    @property
    def number(self) -> float:
        return self.mean + DEVIATIONS * math.sqrt(max(0.0, self.square - self.mean * self.mean))


class ClassHeadroom:
    """Follows the numbers of unfinished requests of each class.

    >>> headroom = ClassHeadroom()
    >>> headroom.enter(0, 0.0), headroom.enter(0, 0.0), headroom.enter(1, 0.0)
    (None, None, None)
    >>> for second in range(200):
    ...     headroom.observe(float(second), free_blocks=1000)
    >>> headroom.started(0, 10.0)
    >>> headroom.leave(0)
    >>> [round(room, 1) for room in headroom.above(1, slots=64)]
    [10.0, 1.0]
    >>> headroom.above(0, slots=64)
    (0.0, 0.0)
    """

    def __init__(self) -> None:
        self._unfinished: Counter[int] = Counter()
        self._usual: dict[int, _Usual] = {}
        self._observed_s = math.nan
        self._blocks = 0
        """The most blocks that were free: those of the engine, as far as it is known."""

    def enter(self, priority: int, arrival_s: float) -> None:
        """Count a request that entered the engine."""
        self._unfinished[priority] += 1
        usual = self._usual.get(priority)
        if usual is not None:
            usual.came(arrival_s)

    def leave(self, priority: int) -> None:
        """Count a request that left it, or that can never run."""
        self._unfinished[priority] -= 1
        if not self._unfinished[priority]:
            del self._unfinished[priority]

    def observe(self, now_s: float, free_blocks: int) -> None:
        """Take the present numbers for those since the last call."""
        self._blocks = max(self._blocks, free_blocks)
        passed_s, self._observed_s = now_s - self._observed_s, now_s
        if not passed_s > 0.0 or (len(self._unfinished) < 2 and not self._usual):
            return
        weight = -math.expm1(-passed_s / MEMORY_S)
        for priority in self._unfinished.keys() - self._usual.keys():
            if len(self._usual) < MOST_CLASSES:
                number = self._unfinished[priority]
                self._usual[priority] = _Usual(mean=number, square=number * number, came_s=now_s)
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

    def above(self, priority: int, *, slots: int) -> tuple[float, float]:
        """Return the blocks and slots that a class leaves free for the classes above it.

        Args:
            priority: The class; a lower number is a higher class.
            slots: Requests that it can run at once.
        """
        missing_blocks = missing = 0.0
        for other, usual in self._usual.items():
            if other < priority and usual.comes(self._observed_s):
                more = max(0.0, usual.number - self._unfinished[other])
                missing += more
                missing_blocks += more * usual.need_blocks
        return min(missing_blocks, LARGEST_SHARE * self._blocks), min(missing, LARGEST_SHARE * slots)
