"""When the gain is computed again: while somebody looks often, else rarely, and never for more than a share of the host."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GainLimits:
    """Bounds and intervals of the comparison."""

    interval_s: float = 30.0
    """Seconds between two comparisons while somebody looks."""
    unseen_interval_s: float = 600.0
    """The same while nobody does."""
    seen_for_s: float = 60.0
    """For how long an answer counts as looked at after it was asked for."""
    share: float = 0.05
    """Largest share of the host's CPU time that comparisons take on average."""
    first_after_s: float = 5.0
    deadline_s: float = 90.0
    fewest_requests: int = 40
    requests: int = 2500
    window_s: float = 3600.0
    """Seconds of the history that are read."""


class GainPace:
    """Decides from what comparisons have cost when the next one may begin; all times are of one steady clock.

    >>> pace = GainPace(GainLimits(interval_s=30.0, unseen_interval_s=600.0, share=0.05), cores=2, now_s=0.0)
    >>> pace.due_s
    5.0
    >>> pace.ran(began_s=5.0, ended_s=15.0, cpu_s=8.0)
    >>> pace.due_s
    605.0
    >>> pace.asked(now_s=40.0)
    >>> pace.due_s  # 8 s of CPU time are a twentieth of two cores within 80 s
    85.0
    """

    def __init__(self, limits: GainLimits, *, cores: int, now_s: float) -> None:
        self._limits = limits
        self._cores = cores
        self._began_s = -math.inf
        self._seen_until_s = -math.inf
        self._earliest_s = now_s + limits.first_after_s

    def asked(self, now_s: float) -> None:
        """Somebody looks."""
        self._seen_until_s = now_s + self._limits.seen_for_s

    def ran(self, *, began_s: float, ended_s: float, cpu_s: float) -> None:
        """A comparison took so much CPU time."""
        rest_s = cpu_s / (self._limits.share * self._cores)
        self._began_s = began_s
        self._earliest_s = max(ended_s + self._limits.interval_s, began_s + rest_s)

    @property
    def due_s(self) -> float:
        """When the next comparison begins, unless somebody asks before."""
        if self._seen_until_s >= self._earliest_s or self._began_s == -math.inf:
            return self._earliest_s
        return max(self._earliest_s, self._began_s + self._limits.unseen_interval_s)


def host_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_s() -> float:
    """CPU seconds of this thread and of all children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_THREAD, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
