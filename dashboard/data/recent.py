"""The recent past, kept in the dashboard so that the controller is asked for the last seconds only.

One `RecentPast` serves all open browsers.
Ten minutes of ten snapshots a second are some megabytes of JSON: asked for once, not every second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from dashboard.data.client import ControllerClient, Trouble
from store.http_api import FinishedPoint, RecentView, SnapshotPoint

KEPT_S = 630.0
"""Ten minutes, and a little more so that bins at the far end are whole."""
OVERLAP_S = 5.0
"""Facts may reach the controller so much later than they happened; what is seen twice is kept once."""
REUSED_S = 0.8
"""Askers within so long of each other get the same answer."""


Point = TypeVar("Point", SnapshotPoint, FinishedPoint)


@dataclass
class _Kept:
    controller_id: str
    asked_s: float
    snapshots: dict[tuple[str, float], SnapshotPoint] = field(default_factory=dict)
    finished: dict[tuple[str, str], FinishedPoint] = field(default_factory=dict)


class RecentPast:
    """Joins short answers of one controller into the last ten minutes and a half; may be shared between threads.

    Args:
        client: asks the controller.
        clock: seconds that only grow, such as ``time.monotonic``.
    """

    def __init__(self, client: ControllerClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: _Kept | None = None

    def read(self, controller_id: str, now_s: float, window_s: float) -> RecentView | Trouble:
        """Give what happened within ``window_s`` before ``now_s``, the controller's time; oldest first.

        Another ``controller_id`` than before means that the controller has started anew: what the former one said
        is forgotten.
        """
        with self._lock:
            trouble = self._catch_up(controller_id, now_s)
            if trouble is not None:
                return trouble
            assert self._kept is not None
            since_s = now_s - window_s
            return RecentView(
                snapshots=_since(self._kept.snapshots.values(), since_s),
                finished=_since(self._kept.finished.values(), since_s),
            )

    def _catch_up(self, controller_id: str, now_s: float) -> Trouble | None:
        asking_s = self._clock()
        kept = self._kept
        if kept is None or kept.controller_id != controller_id:
            kept = _Kept(controller_id, asking_s - KEPT_S)
        elif asking_s - kept.asked_s < REUSED_S:
            return None
        answer = self._client.recent(min(KEPT_S, asking_s - kept.asked_s + OVERLAP_S))
        if isinstance(answer, Trouble):
            return answer
        kept.snapshots.update({(point.engine_id, point.time_s): point for point in answer.snapshots})
        kept.finished.update({(point.engine_id, point.request_id): point for point in answer.finished})
        oldest_s = now_s - KEPT_S
        kept.snapshots = {key: point for key, point in kept.snapshots.items() if point.time_s >= oldest_s}
        kept.finished = {key: point for key, point in kept.finished.items() if point.time_s >= oldest_s}
        kept.asked_s = asking_s
        self._kept = kept
        return None


def _since(points: Iterable[Point], since_s: float) -> tuple[Point, ...]:
    return tuple(sorted((point for point in points if point.time_s >= since_s), key=lambda point: point.time_s))
