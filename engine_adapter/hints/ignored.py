"""Tells the operator of hints that were ignored: a counter in vLLM's own metrics, and a line in the log at most a minute."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from engine_adapter.hints.values import UnusableHintError

log = logging.getLogger("vllm.sagesched.http_hints")

LOG_INTERVAL_S = 60.0


class _Labelled(Protocol):
    def labels(self, value: str) -> _Incremented: ...


class _Incremented(Protocol):
    def inc(self) -> None: ...


class IgnoredHints:
    """Counts hints that were ignored, by the header or field.

    Args:
        clock: Seconds, for the interval between two lines about one of them.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._unlogged: Counter[str] = Counter()
        self._logged_s: dict[str, float] = {}

    def count(self, error: UnusableHintError) -> None:
        """Count one, and say so once a minute; sources are few, as they come from our own tables."""
        if (metric := _metric()) is not None:
            metric.labels(error.source).inc()
        self._unlogged[error.source] += 1
        now_s = self._clock()
        if now_s - self._logged_s.get(error.source, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_s[error.source] = now_s
            log.warning("ignored %d times: %s", self._unlogged.pop(error.source), error)


@functools.cache
def _metric() -> _Labelled | None:
    """Return the counter in the process's own registry; None without Prometheus's client, which vLLM has."""
    try:
        from prometheus_client import Counter as Metric  # noqa: PLC0415 - the adapter asks for nothing beside msgspec
    except ImportError:
        return None
    name = "sagesched_http_hints_ignored_total"
    return Metric(name, "Hints in requests that could not be used and were ignored, by header or field.", ["hint"])
