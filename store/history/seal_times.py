"""When the writer seals: soon after something has happened, seldom while engines do nothing but say so."""

from __future__ import annotations

from store.entries import Entry
from store.records import Snapshot

QUIET_SEAL_S = 60.0
"""Time between two sealings while engines are idle."""


class SealTimes:
    """What came since the last sealing, and when the next one is due; positions are the writer's.

    Args:
        interval_s: time between two looks after what is sealed, at each of which there may be a sealing.

    >>> times = SealTimes(5.0)
    >>> times.maintained(0.0, until=0)
    >>> times.next_s, times.is_due(5.0), times.is_due(60.0)
    (5.0, False, True)
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.next_s = 0.0
        """When to look again."""
        self._news = 0
        """Position of the last entry that says more than that an engine is idle."""
        self._sealed = 0
        self._quiet_until_s = float("-inf")

    def take(self, entry: Entry, position: int) -> None:
        """Look at an entry that will be durable at a position."""
        if not (isinstance(entry.record, Snapshot) and entry.record.is_idle):
            self._news = position

    def is_due(self, now_s: float) -> bool:
        """Whether there is anything to be sealed for."""
        return self._news > self._sealed or now_s >= self._quiet_until_s

    def maintained(self, now_s: float, *, until: int | None = None) -> None:
        """It was looked after; ``until`` is the position up to which all was sealed, where it was."""
        self.next_s = now_s + self._interval_s
        if until is not None:
            self._sealed, self._quiet_until_s = until, now_s + QUIET_SEAL_S
