"""How long the control loop is held up, and by what: it is one thread, and nothing may keep it from the next message."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Histogram

Cause: TypeAlias = Literal["waiting", "work", "garbage"]
"""waiting: in one turn the time in which the loop did not run, because another thread had the interpreter (sealing,
compaction, reading back), the disk did not answer, or another process had the core; work: one piece of deferred work, such as
learning from an answer and forming clusters anew; garbage: one run of the garbage collector, on whatever thread."""

BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COLLECTIONS = 1_000
"""Runs of the garbage collector that are remembered until the loop counts them."""


class LoopPauses:
    """The histogram of pauses; for the control loop's thread.

    Args:
        registry: where the histogram is shown.
        timer: seconds of a clock that never jumps.
        cpu_timer: CPU seconds of the calling thread.
    """

    def __init__(
        self, registry: CollectorRegistry, *, timer: Callable[[], float], cpu_timer: Callable[[], float]
    ) -> None:
        self._timer = timer
        self._cpu_timer = cpu_timer
        self._pauses = Histogram(
            "sagesched_loop_pause_seconds",
            "Time in which the control loop could not turn to the next message, by cause: waiting for other threads or "
            "the disk within a turn, one piece of deferred work, one garbage collection.",
            ("cause",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.waited_s = 0.0
        """Time of all waiting within turns so far."""
        self._collecting_since_s: float | None = None
        self._collections: deque[float] = deque(maxlen=COLLECTIONS)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Count the time in which the loop did not run during a turn, and the garbage collections since the last one."""
        started_s, cpu_s = self._timer(), self._cpu_timer()
        try:
            yield
        finally:
            waited_s = max(0.0, self._timer() - started_s - (self._cpu_timer() - cpu_s))
            self.waited_s += waited_s
            self._observe("waiting", waited_s)
            while self._collections:
                self._observe("garbage", self._collections.popleft())

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count a piece of deferred work."""
        started_s = self._timer()
        try:
            yield
        finally:
            self._observe("work", self._timer() - started_s)

    @contextmanager
    def collector_watched(self) -> Iterator[None]:
        """Count garbage collections within this."""
        gc.callbacks.append(self._collected)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collected)

    def _observe(self, cause: Cause, seconds: float) -> None:
        self._pauses.labels(cause).observe(seconds)

    def _collected(self, phase: Literal["start", "stop"], _info: dict[str, int]) -> None:
        """Remember a collection; counting it here could wait for a lock that this very thread holds."""
        if phase == "start":
            self._collecting_since_s = self._timer()
        elif self._collecting_since_s is not None:
            self._collections.append(self._timer() - self._collecting_since_s)
