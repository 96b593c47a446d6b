"""Tells the operator of what happens to requests: a counter in vLLM's own metrics, and a line in the log at most a minute."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("vllm.sagesched.http_hints")

LOG_INTERVAL_S = 60.0

IGNORED = "sagesched_http_hints_ignored_total"
DROPPED = "sagesched_http_dropped_total"

_METRICS = {
    IGNORED: ("Hints in requests that could not be used and were ignored, by header or field.", "hint"),
    DROPPED: ("Requests that were answered by 429, by reason.", "reason"),
}


class _Labelled(Protocol):
    def labels(self, value: str) -> _Incremented: ...


class _Incremented(Protocol):
    def inc(self) -> None: ...


class Counted:
    """Counts one kind of event by its cause.

    Args:
        metric: Name of the counter.
        event: What happens, as the log says it.
        clock: Seconds, for the interval between two lines about one cause.
    """

    def __init__(self, metric: str, event: str, clock: Callable[[], float]) -> None:
        self._name = metric
        self._event = event
        self._clock = clock
        self._unlogged: Counter[str] = Counter()
        self._logged_s: dict[str, float] = {}

    def count(self, cause: str, text: object) -> None:
        """Count one, and say so once a minute; causes are few, as they come from our own tables."""
        if (metric := _metric(self._name)) is not None:
            metric.labels(cause).inc()
        self._unlogged[cause] += 1
        now_s = self._clock()
        if now_s - self._logged_s.get(cause, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_s[cause] = now_s
            log.warning("%s %d times: %s", self._event, self._unlogged.pop(cause), text)


@functools.cache
def _metric(name: str) -> _Labelled | None:
    """Return the counter in the process's own registry; None without Prometheus's client, which vLLM has."""
    try:
        from prometheus_client import Counter as Metric  # noqa: PLC0415 - the adapter asks for nothing beside msgspec
    except ImportError:
        return None
    text, label = _METRICS[name]
    return Metric(name, text, [label])
