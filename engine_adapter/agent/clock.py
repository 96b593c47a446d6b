"""The clock of engines and controllers: Unix seconds that never jump, even when the system clock is set."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady_clock(
    wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Return a clock that reads ``wall`` once, now, and advances with ``monotonic``.

    Heartbeats, leases and pauses are measured on it, so setting the system clock back by an hour does not appear as an
    hour of silence. After such a correction recorded times differ from the system clock until the next start, and
    `StampClock.off_s` says by how much.

    >>> times = iter([1000.0, 1.0])
    >>> clock = steady_clock(lambda: 5000.0, lambda: next(times))
    >>> clock()
    4001.0
    """
    offset_s = wall() - monotonic()
    return lambda: offset_s + monotonic()


OLDEST_STAMP_S = 30.0
"""Age up to which a front end's stamp is believed: a request waits for a step at most before the engine takes it in."""


class StampClock:
    """Turns moments that another process stamped by the system clock into those of the engine's own clock.

    Args:
        now_s: The engine's own clock, which never jumps.
        wall_s: The system clock.

    >>> wall = 1000.0
    >>> clock = StampClock(lambda: 1000.0, lambda: wall)
    >>> clock.own_s(999.5)
    999.5
    >>> wall = 4600.0
    >>> clock.own_s(4599.5), clock.off_s(), clock.replaced
    (999.5, 3600.0, 0)
    >>> clock.own_s(999.5), clock.replaced
    (1000.0, 1)
    """

    def __init__(self, now_s: Callable[[], float], wall_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self._wall_s = wall_s
        self.replaced = 0
        """Number of stamps that could not be: of the future, or older than `OLDEST_STAMP_S`."""

    def off_s(self) -> float:
        """Return the system clock's time minus the engine's own: the steps of the system clock since the start."""
        return self._wall_s() - self.now_s()

    def own_s(self, stamp_s: float) -> float:
        """Return a moment that has just been by the engine's clock; now for a stamp that cannot be.

        Both clocks are read now, so a step before the stamp does not matter. After one between the stamp and now, and for
        a front end whose clock is another, the result is now, or earlier by `OLDEST_STAMP_S` at most.
        """
        now_s = self.now_s()
        moment_s = stamp_s - (self._wall_s() - now_s)
        if now_s - OLDEST_STAMP_S <= moment_s <= now_s:
            return moment_s
        self.replaced += abs(moment_s - now_s) > _JITTER_S
        return now_s


_JITTER_S = 0.01
"""A stamp ahead by less is of clocks that were read one after the other."""
