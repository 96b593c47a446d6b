"""Failures of the core: for how long engines serve first come, first served because of them, and what is said of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from traceback import walk_tb

from store.http_api import DegradedState
from store.records import Mode

LEARNER_FAILURES = 3
LEARNER_WINDOW_S = 600.0
"""The learner counts as failing while it has failed this often within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseLimits:
    """Seconds for which order is given up after a failure: the first time, and at most."""

    first_s: float
    limit_s: float


class Trouble:
    """How often the core failed, and until when its engines serve first come, first served.

    A failure pauses order. One that comes sooner after the pause than the pause had lasted doubles it, up to the limit;
    after a longer time in order the next pause is the first again: failures that come now and then cost at most about
    half of the time, and a core that always fails is left alone.
    """

    def __init__(self) -> None:
        self.errors = 0
        self.until_s: float | None = None
        """When order is tried again; None while it is in force."""
        self.wanted: Mode = "off"
        """The mode to return to."""
        self._pause_s = 0.0
        self._ended_s = float("-inf")
        self._last = ""
        self._learner_failures: deque[float] = deque(maxlen=LEARNER_FAILURES)

    def fail(self, error: Exception, mode: Mode, limits: PauseLimits, now_s: float) -> None:
        """Count a failure and begin a pause, or extend the one that lasts; ``mode`` is in force at this time."""
        self.errors += 1
        self._last = described(error)
        if self.until_s is None:
            self.wanted = mode
            soon = now_s - self._ended_s < self._pause_s
            self._pause_s = min(2.0 * self._pause_s, limits.limit_s) if soon else limits.first_s
        self.until_s = now_s + self._pause_s
        if _is_of_learner(error):
            self._learner_failures.append(now_s)

    def is_over(self, now_s: float) -> bool:
        """Whether a pause has just ended; it is ended by this."""
        over = self.until_s is not None and now_s >= self.until_s
        if over:
            self.end(now_s)
        return over

    def end(self, now_s: float) -> None:
        """End a pause, because its time is over or the operator says so."""
        if self.until_s is not None:
            self._ended_s = min(now_s, self.until_s)
            self.until_s = None

    def states(self, now_s: float) -> Iterator[DegradedState]:
        """What is amiss because of failures."""
        if self.until_s is not None:
            text = (
                f"{self._last}. Order is tried again in {max(0.0, self.until_s - now_s):.0f} s; "
                f"the log has each kind of failure once, with its trace. {self.errors} failures since the start."
            )
            yield DegradedState(kind="loop_failing", text=text)
        failures = self._learner_failures
        if len(failures) == LEARNER_FAILURES and now_s - failures[0] < LEARNER_WINDOW_S:
            text = (
                f"It failed {LEARNER_FAILURES} times within {LEARNER_WINDOW_S:.0f} s, the last with {self._last}. "
                "Answers on which it fails are recorded and not learned from; restart the controller if it does not end."
            )
            yield DegradedState(kind="learner_failing", text=text)


def described(error: Exception) -> str:
    """A failure in one line of bounded length."""
    return f"{type(error).__name__}: {error}"[:300]


def _is_of_learner(error: Exception) -> bool:
    """Whether a failure came out of the learner."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").startswith("online_learning.") for frame in frames)
