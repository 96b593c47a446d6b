"""The clock of engines and controllers: Unix seconds that never jump, even when the system clock is set."""

from __future__ import annotations

import math
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
    >>> clock.own_s(999.5), clock.own_s(0.5), clock.replaced
    (999.5, 1000.0, 1)
    """

    def __init__(self, now_s: Callable[[], float], wall_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self._wall_s = wall_s
        self._seen_off_s = self._off_before_s = wall_s() - now_s()
        self._stepped_s = -math.inf
        self.replaced = 0
        """Number of stamps that could not be: of the future, or older than `OLDEST_STAMP_S`."""

    def off_s(self) -> float:
        """Return the system clock's time minus the engine's own: the steps of the system clock since the start."""
        return self._wall_s() - self.now_s()

    def own_s(self, stamp_s: float) -> float:
        """Return a moment that has just been by the engine's clock; now for a stamp that cannot be.

        Both clocks are read now, so a step before the stamp does not matter. For a while after one the stamp may be by
        the system clock of before or of after it: the later moment that is not in the future is meant, which is never
        before the stamp. For a front end whose clock is another, the result is now, or earlier by `OLDEST_STAMP_S` at
        most.
        """
        now_s = self.now_s()
        moments = [stamp_s - off_s for off_s in self._offsets(now_s)]
        possible = [moment_s for moment_s in moments if -_JITTER_S <= now_s - moment_s <= OLDEST_STAMP_S]
        if possible:
            return min(now_s, max(possible))
        self.replaced += 1
        return now_s

    def _offsets(self, now_s: float) -> tuple[float, ...]:
        """The system clock's time minus the engine's own, and what it was before a step that was just seen."""
        off_s = self._wall_s() - now_s
        if abs(off_s - self._seen_off_s) > _JITTER_S:
            self._off_before_s, self._stepped_s = self._seen_off_s, now_s
        self._seen_off_s = off_s
        return (off_s, self._off_before_s) if now_s - self._stepped_s <= OLDEST_STAMP_S else (off_s,)


_JITTER_S = 0.01
"""A stamp ahead by less is of clocks that were read one after the other."""
