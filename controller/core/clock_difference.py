"""How far an engine's clock is from the controller's, by the times in its snapshots."""

from __future__ import annotations

from collections import deque

SNAPSHOTS = 20
"""Snapshots of about two seconds: one of them is read soon after it was taken."""


class ClockDifference:
    """The controller's time minus the engine's, of the snapshot among the last ones that came fastest.

    >>> difference = ClockDifference()
    >>> [difference.observe(taken_s, read_s) for taken_s, read_s in ((10.0, 13.0), (10.1, 10.2), (10.2, 12.0))]
    [None, None, None]
    >>> round(difference.s, 6)
    0.1
    """

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=SNAPSHOTS)
        self.s = 0.0
        """The difference in seconds; 0 before the first snapshot."""

    def observe(self, taken_s: float, read_s: float) -> None:
        """Record a snapshot that the engine took and the controller read, each by its own clock."""
        self._latest.append(read_s - taken_s)
        self.s = min(self._latest)
