"""Looks up the facts about a request in the history, in the controller's process also those not sealed yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from store.errors import BadInputError, StoreError
from store.history.reader import open_history
from store.history.recent_rows import RecentRows
from store.http_requests import RequestTimeline
from store.reading.request_timeline import TABLES, read_timeline

RECENT_S = 3600.0
"""Seconds of the history that are searched first: reading all of a long history takes seconds of CPU time."""


class Explainer:
    """Finds the facts of a request for the API.

    Args:
        rows: reads what the history's writer has committed.
        clock: Unix seconds.
    """

    def __init__(self, rows: RecentRows, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._clock = clock

    def timeline(self, request_id: str) -> RequestTimeline | None:
        """Everything that is recorded about a request; None if no session of an engine had one of this name.

        Raises:
            StoreError: the history cannot be written or read at this moment.
        """
        since_s = self._clock() - RECENT_S
        found = self._read(request_id, since_s)
        return found if found is not None and found.arrival_s >= since_s else self._read(request_id, None)

    def _read(self, request_id: str, since_s: float | None) -> RequestTimeline | None:
        with self._rows.open(TABLES, since_s) as connection:
            return read_timeline(connection, request_id)


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
    """The error for an unknown request, with the remedy."""
    latest = "SELECT request_id FROM requests ORDER BY arrival_s DESC LIMIT 10"
    return f"no request {request_id!r} in {where}", f'`sagesched sql "{latest}"` lists the latest'
