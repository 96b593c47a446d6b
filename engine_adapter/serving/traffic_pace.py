"""The pace of a simulated engine in real time: when requests arrive, and how fast a host lets it run.

A host that is late with every step would serve less than the traffic was made for, and a queue would grow without end.
So arrivals wait as long as the host was late, and where that is much the speed is lowered to what the host can do.
"""

from __future__ import annotations

SHARE = 0.8
"""Smallest share of the busy time that the device's steps take of it; below, the host is too slow for the speed."""
WINDOW_S = 5.0
"""Busy seconds over which that share is measured."""


class TrafficPace:
    """Maps the traffic's time to the clock's.

    >>> pace = TrafficPace(speed=6.0, start_s=100.0)
    >>> pace.moment(60.0)
    110.0
    >>> lowered = [pace.stepped(now_s=100.1 + 0.1 * n, device_s=0.06, busy_s=0.1) for n in range(50)]
    >>> [round(speed, 2) for speed in lowered if speed]  # it had got as far as 3 of its seconds allow
    [3.6]
    >>> round(pace.moment(60.0), 2)
    116.67
    """

    def __init__(self, *, speed: float, start_s: float) -> None:
        self.speed = speed
        self._from_s = start_s
        self._reached_s = 0.0
        """Time of the traffic at ``_from_s``."""
        self._device_s = 0.0
        self._busy_s = 0.0

    def moment(self, traffic_s: float) -> float:
        """When what happens at a time of the traffic does, if the host is not late from now on."""
        return self._from_s + (traffic_s - self._reached_s) / self.speed

    def stepped(self, *, now_s: float, device_s: float, busy_s: float) -> float | None:
        """A step took the device so long, and the host so much in all; returns the speed if it is lowered now."""
        self._from_s += max(0.0, busy_s - device_s)
        self._device_s += device_s
        self._busy_s += busy_s
        if self._busy_s < WINDOW_S - 1e-9:
            return None
        share = self._device_s / self._busy_s
        self._device_s = self._busy_s = 0.0
        if share >= SHARE:
            return None
        self._reached_s += (now_s - self._from_s) * self.speed
        self._from_s = now_s
        self.speed *= share
        return self.speed
