"""Age of the oldest snapshot that the controller was sent and has not read.

An overloaded controller still sends heartbeats, but decides on outdated state.
Its heartbeats name the last snapshot that it has read by the engine's own clock, so no clocks are compared.
"""

from __future__ import annotations

import math


class ControllerLag:
    """Compares the snapshots sent to a controller with those that it confirms as read."""

    def __init__(self) -> None:
        self._sent_s = -math.inf
        self._unread_s: float | None = None
        """Lower bound on the time of the oldest unread snapshot; None when all were read."""
        self._confirms = False

    def reset(self) -> None:
        """Start over with a new controller; one that never confirms a snapshot is never late."""
        self._unread_s, self._confirms = None, False

    def sent(self, now_s: float) -> None:
        """Record that a snapshot was sent."""
        self._sent_s = now_s
        if self._unread_s is None:
            self._unread_s = now_s

    def confirm(self, read_s: float) -> None:
        """Record that the controller has read everything up to the snapshot of ``read_s``."""
        self._confirms = True
        if read_s >= self._sent_s:
            self._unread_s = None
        elif self._unread_s is not None:
            self._unread_s = max(self._unread_s, read_s)

    def late_s(self, now_s: float) -> float:
        """Return the age of the oldest unread snapshot in seconds; 0 when all were read.

        >>> lag = ControllerLag()
        >>> lag.sent(1.0), lag.confirm(1.0), lag.sent(2.0), lag.sent(3.0)
        (None, None, None, None)
        >>> lag.late_s(5.0)
        3.0
        >>> lag.confirm(3.0), lag.late_s(9.0)
        (None, 0.0)
        """
        return now_s - self._unread_s if self._confirms and self._unread_s is not None else 0.0
