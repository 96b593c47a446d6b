"""The pause after a failure: longer each time that failures come back soon, and short again once they have stayed away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseLimits:
    """Seconds for which order is given up after a failure: the first time, and at most."""

    first_s: float
    limit_s: float


class Pause:
    """How often something failed, and until when order is given up because of it.

    A failure begins a pause. One that comes sooner after the pause than the pause had lasted doubles it, up to the limit;
    after a longer time in order the next pause is the first again: failures that come now and then cost at most about
    half of the time, and what always fails is left alone.
    """

    def __init__(self) -> None:
        self.errors = 0
        self.until_s: float | None = None
        """When order is tried again; None while it is in force."""
        self.last = ""
        """The last failure, in one line."""
        self._pause_s = 0.0
        self._ended_s = float("-inf")

    def extend(self, error: Exception, limits: PauseLimits, now_s: float) -> bool:
        """Count a failure and begin a pause, or extend the one that lasts; returns whether it begins."""
        self.errors += 1
        self.last = described(error)
        begins = self.until_s is None
        if begins:
            soon = now_s - self._ended_s < self._pause_s
            self._pause_s = min(2.0 * self._pause_s, limits.limit_s) if soon else limits.first_s
        self.until_s = now_s + self._pause_s
        return begins

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


def described(error: Exception) -> str:
    """A failure in one line of bounded length."""
    return f"{type(error).__name__}: {error}"[:300]
