"""When an engine's steps ended, from which the times between a request's output tokens follow.

A request that decodes gets its tokens in nearly every step, so that nothing need be noted of it from step to step: the
times between its tokens are those between the ends of the steps from its first token to its last. Only where a preemption
or a used-up token budget keeps it from some steps are these counted as one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import sub

STEPS_KEPT = 16_384
"""Steps whose ends are known: of a longer answer the times between its latest tokens are told."""


@dataclass(frozen=True, slots=True)
class InterTokenTimes:
    """The longest time between two output tokens, and the 99% quantile of these times, in seconds."""

    max_s: float
    p99_s: float


def inter_token_times(ends_s: Sequence[float]) -> InterTokenTimes | None:
    """Return the figures of tokens that were generated at these times; None for fewer than two.

    >>> inter_token_times([0.0, 1.0, 3.0])
    InterTokenTimes(max_s=2.0, p99_s=2.0)
    """
    if len(ends_s) < 2:
        return None
    times_s = nlargest(1 + (len(ends_s) - 1) // 100, map(sub, ends_s[1:], ends_s))
    return InterTokenTimes(max_s=times_s[0], p99_s=times_s[-1])


class StepTimes:
    """The ends of the latest steps.

    >>> times = StepTimes()
    >>> for end_s in (1.0, 2.0, 4.0, 7.0):
    ...     times.ended(end_s)
    >>> times.between(2, 4), times.between(2, 4, left_out=[(2, 4)])
    (InterTokenTimes(max_s=3.0, p99_s=3.0), InterTokenTimes(max_s=5.0, p99_s=5.0))
    """

    def __init__(self) -> None:
        self.steps = 0
        """Number of the latest step; the first has 1."""
        self._ends_s = array("d")
        """Packed, because an answer's are read in one go; up to twice `STEPS_KEPT`, of which the latest count."""

    def ended(self, time_s: float) -> None:
        """Record the end of a step."""
        self.steps += 1
        self._ends_s.append(time_s)
        if len(self._ends_s) > 2 * STEPS_KEPT:
            del self._ends_s[:STEPS_KEPT]

    def between(self, first: int, last: int, left_out: Sequence[tuple[int, int]] = ()) -> InterTokenTimes | None:
        """Return the figures of a request that got a token in each step from ``first`` to ``last``.

        Args:
            first: Number of the step that generated its first token.
            last: Number of the step that generated its latest.
            left_out: Pairs of steps between which it got none.
        """
        oldest = self.steps - len(self._ends_s) + 1
        first = max(first, oldest, self.steps - STEPS_KEPT + 1)
        ends_s = self._ends_s[first - oldest : max(0, last - oldest + 1)]
        for before, after in reversed(left_out):
            del ends_s[max(0, before + 1 - first) : max(0, after - first)]
        return inter_token_times(ends_s)
