"""The clock that engines and controllers go by: Unix seconds that never jump, whatever is done to the system's meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady_clock(
    wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """A clock that is set by ``wall`` once, now, and goes by ``monotonic`` from then on.

    Heartbeats, leases and pauses are measured on it, so that an hour that the system's clock is put back is no hour of
    silence. After a correction of the system's clock recorded times differ from it until the next start.

    >>> times = iter([1000.0, 1.0])
    >>> clock = steady_clock(lambda: 5000.0, lambda: next(times))
    >>> clock()
    4001.0
    """
    offset_s = wall() - monotonic()
    return lambda: offset_s + monotonic()
