"""Paths of the recent past: load, latencies, service levels and finished requests of the last minutes, read from the history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query

from store.errors import StoreError
from store.history.recent_rows import RecentRows
from store.http_requests import FinishedView, LatenciesView, LoadView
from store.http_service import ServiceView
from store.reading import latencies, load, service
from store.reading.latencies import Window, read_finished, read_latencies
from store.reading.load import read_load
from store.reading.scope import Part, Scope
from store.reading.service import read_service

LONGEST_REQUEST_S = 3600.0
"""Class, tenant and prediction are looked up only for requests that took at most these seconds."""

Seconds = Annotated[float, Query(ge=1, le=86_400)]
Bins = Annotated[int, Query(ge=1, le=1000)]


@contextmanager
def reading_history() -> Iterator[None]:
    """Answer 503 if the history cannot be written or read at this moment."""
    try:
        yield
    except StoreError as error:
        raise HTTPException(
            status_code=503, detail={"error": str(error), "remedy": "try again in a few seconds"}
        ) from None


def add_recent(api: FastAPI, rows: RecentRows, clock: Callable[[], float], guard: Any) -> None:
    """Add the paths; all answer 503 while the history cannot be written, because recent facts are missing then."""

    @api.get("/api/load", tags=["recent"], dependencies=[guard])
    def engines_load(
        seconds: Seconds = 600.0, bins: Bins = 60, engine_id: str | None = None, model: str | None = None
    ) -> LoadView:
        """Queue, batch, KV memory and throughput of the engines over the last seconds, in bins."""
        width_s = seconds / bins
        now_s = clock()
        since_s = now_s - seconds - 2.0 * width_s  # The bins at both ends are left out.
        with reading_history(), rows.open(load.TABLES, since_s) as connection:
            return read_load(connection, Scope(engine_id=engine_id, model=model), since_s, width_s, now_s)

    @api.get("/api/latency", tags=["recent"], dependencies=[guard])
    def latency(
        seconds: Seconds = 600.0,
        bins: Bins = 30,
        engine_id: str | None = None,
        model: str | None = None,
        part: Annotated[str | None, Query(pattern="^(engine|class|tenant|model|cluster):.")] = None,
    ) -> LatenciesView:
        """Percentiles, heatmaps and phases of the requests that ended within the last seconds, or of one part (``class:0``) of them."""
        now_s, width_s = clock(), seconds / bins
        by, _, name = (part or "").partition(":")
        scope = Scope(engine_id=engine_id, model=model, part=Part(by, name) if part else None)
        window = Window(now_s - seconds, now_s, width_s)
        with reading_history(), rows.open(latencies.TABLES, window.since_s - LONGEST_REQUEST_S) as connection:
            return read_latencies(connection, scope, window)

    @api.get("/api/service", tags=["recent"], dependencies=[guard])
    def service_levels(
        seconds: Seconds = 600.0, bins: Bins = 30, engine_id: str | None = None, model: str | None = None
    ) -> ServiceView:
        """Attainment by service class and tenant, error budgets, and who used what, of the requests that ended within the last seconds."""
        now_s = clock()
        scope, window = Scope(engine_id=engine_id, model=model), Window(now_s - seconds, now_s, seconds / bins)
        with reading_history(), rows.open(service.TABLES, window.since_s - LONGEST_REQUEST_S) as connection:
            return read_service(connection, scope, window)

    @api.get("/api/finished", tags=["recent"], dependencies=[guard])
    def finished(
        seconds: Seconds = 600.0,
        limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
        engine_id: str | None = None,
        model: str | None = None,
    ) -> FinishedView:
        """The latest requests that ended within the last seconds, with their predictions, oldest first."""
        since_s = clock() - seconds
        scope = Scope(engine_id=engine_id, model=model)
        with reading_history(), rows.open(latencies.TABLES, since_s - LONGEST_REQUEST_S) as connection:
            return FinishedView(read_finished(connection, scope, since_s, limit))
