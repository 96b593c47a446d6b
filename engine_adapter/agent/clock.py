"""The clock of engines and controllers: Unix seconds that never jump, even when the system clock is set."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady_clock(
    wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Return a clock that reads ``wall`` once, now, and advances with ``monotonic``.

    Heartbeats, leases and pauses are measured on it, so setting the system clock back by an hour does not appear as an
    hour of silence. After such a correction recorded times differ from the system clock until the next start.

    >>> times = iter([1000.0, 1.0])
    >>> clock = steady_clock(lambda: 5000.0, lambda: next(times))
    >>> clock()
    4001.0
    """
    offset_s = wall() - monotonic()
    return lambda: offset_s + monotonic()
