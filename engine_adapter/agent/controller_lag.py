"""Whether a controller that speaks also listens: how old the oldest thing is that it was told and has not read.

A controller that is overwhelmed keeps its heart beating and decides about a past that is gone.
Its heartbeats say which snapshot it has read last, by the engine's own clock, so that no clocks are compared.
"""

from __future__ import annotations

import math


class ControllerLag:
    """Follows what a controller was told and what it says that it has read."""

    def __init__(self) -> None:
        self._told_s = -math.inf
        self._unread_s: float | None = None
        """A moment before which everything told was read; None when everything was."""
        self._confirms = False

    def meet(self) -> None:
        """A controller begins anew; one that never says what it has read is never late."""
        self._unread_s, self._confirms = None, False

    def tell(self, now_s: float) -> None:
        """A snapshot was sent."""
        self._told_s = now_s
        if self._unread_s is None:
            self._unread_s = now_s

    def confirm(self, read_s: float) -> None:
        """The controller has read everything up to the snapshot of this moment."""
        self._confirms = True
        if read_s >= self._told_s:
            self._unread_s = None
        elif self._unread_s is not None:
            self._unread_s = max(self._unread_s, read_s)

    def late_s(self, now_s: float) -> float:
        """For how long something is unread.

        >>> lag = ControllerLag()
        >>> lag.tell(1.0), lag.confirm(1.0), lag.tell(2.0), lag.tell(3.0)
        (None, None, None, None)
        >>> lag.late_s(5.0)
        3.0
        >>> lag.confirm(3.0), lag.late_s(9.0)
        (None, 0.0)
        """
        return now_s - self._unread_s if self._confirms and self._unread_s is not None else 0.0
