"""Where the facts about a request come from: the last minutes in memory and the history, joined.

Reading the history takes a core for a moment, so one reader at a time is let in, with one thread and little memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import duckdb

from controller.monitoring.live_state import Live
from store.errors import BadInputError, StoreError
from store.history.reader import open_history
from store.reading.request_timeline import RequestTimeline, joined, read_timeline

READER_MEMORY = "512MB"


class Explainer:
    """Finds the facts of a request's timeline for the API."""

    def __init__(self, live: Live, store: Path, clock: Callable[[], float]) -> None:
        self._live = live
        self._store = store
        self._clock = clock
        self._reading = threading.Lock()

    def timeline(self, request_id: str) -> RequestTimeline | None:
        """All that is known of the request; None when it is known neither to the last minutes nor to the history."""
        snapshots = self._live.snapshots(0.0)
        recent = self._live.lives.timeline(request_id, snapshots, self._clock())
        if recent is not None and snapshots and self._live.lives.is_whole(recent, snapshots[0][1].time_s):
            return recent
        with self._reading:
            return joined(_recorded(self._store, request_id), recent)


def recorded_timeline(store: Path, request_id: str) -> RequestTimeline:
    """The timeline of a request in a history; raises `BadInputError` when there is no such history or request."""
    try:
        with open_history(store) as connection:
            timeline = read_timeline(connection, request_id)
    except StoreError as error:
        raise BadInputError(str(error)) from None
    except duckdb.Error as error:
        raise StoreError(f"history {store} cannot be read: {str(error).splitlines()[0]}: try again") from error
    if timeline is None:
        raise BadInputError(": ".join(unknown(request_id, f"history {store}")))
    return timeline


def unknown(request_id: str, where: str) -> tuple[str, str]:
    """What to say of a request that nobody knows, and the remedy."""
    latest = "SELECT request_id FROM requests ORDER BY arrival_s DESC LIMIT 10"
    return f"no request {request_id!r} in {where}", f'`sagesched sql "{latest}"` lists the latest'


def _recorded(store: Path, request_id: str) -> RequestTimeline | None:
    """The history's account; None when it has none or cannot be read at this moment."""
    try:
        with open_history(store) as connection:
            connection.execute("SET threads = 1")
            connection.execute(f"SET memory_limit = '{READER_MEMORY}'")
            return read_timeline(connection, request_id)
    except (StoreError, duckdb.Error):
        return None
