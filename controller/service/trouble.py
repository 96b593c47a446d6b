"""Failures of the core: for how long engines serve first come, first served because of them, and what is said of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from traceback import walk_tb

from controller.core.pause import Pause, PauseLimits, described
from store.http_api import DegradedState
from store.records import Mode

LEARNER_FAILURES = 3
LEARNER_WINDOW_S = 600.0
"""The learner counts as failing while it has failed this often within this time."""


class Trouble(Pause):
    """Failures that are no single engine's: until when all engines serve first come, first served."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: Mode = "off"
        """The mode to return to."""
        self._learner_failures: deque[float] = deque(maxlen=LEARNER_FAILURES)
        self._last_of_learner = ""

    def fail(self, error: Exception, mode: Mode, limits: PauseLimits, now_s: float) -> None:
        """Count a failure and begin a pause, or extend the one that lasts; ``mode`` is in force at this time."""
        if self.extend(error, limits, now_s):
            self.wanted = mode

    def observe(self, error: Exception, now_s: float) -> bool:
        """Remember whether a failure, of one engine or of all, came out of the learner, and return that."""
        of_learner = _is_of_learner(error)
        if of_learner:
            self._learner_failures.append(now_s)
            self._last_of_learner = described(error)
        return of_learner

    def states(self, now_s: float) -> Iterator[DegradedState]:
        """What is amiss because of failures."""
        if self.until_s is not None:
            text = (
                f"{self.last}. Order is tried again in {max(0.0, self.until_s - now_s):.0f} s; "
                f"the log has each kind of failure once, with its trace. {self.errors} failures since the start."
            )
            yield DegradedState(kind="loop_failing", text=text)
        failures = self._learner_failures
        if len(failures) == LEARNER_FAILURES and now_s - failures[0] < LEARNER_WINDOW_S:
            text = (
                f"It failed {LEARNER_FAILURES} times within {LEARNER_WINDOW_S:.0f} s, the last with {self._last_of_learner}. "
                "Answers on which it fails are recorded and not learned from; restart the controller if it does not end."
            )
            yield DegradedState(kind="learner_failing", text=text)


def _is_of_learner(error: Exception) -> bool:
    """Whether a failure came out of the learner."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").startswith("online_learning.") for frame in frames)
