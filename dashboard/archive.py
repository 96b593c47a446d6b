"""The recorded history, summed for the page *History*; trouble is a value, never an exception.

The statements read the catalog's views and nothing else, each on a connection that cannot change anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb

from dashboard.series import Percentiles
from store.errors import StoreError
from store.reader import open_history

BUCKETS_S = (60, 300, 900, 3600, 7200, 21_600, 86_400)
BUCKETS_SHOWN = 150
"""The finest width is taken that gives no more buckets than this."""
PARTED = 50_000
"""The latest so many requests are told apart by class, tenant, model and cluster; all would take seconds."""


Value = TypeVar("Value")


@dataclass(frozen=True)
class ArchiveTrouble:
    """Why there is no history to show."""

    kind: Literal["absent", "unreadable"]
    detail: str


@dataclass(frozen=True)
class Coverage:
    """Share of outcomes inside their predicted ranges in one bucket."""

    time_s: float
    within_50: float | None
    within_90: float | None


@dataclass(frozen=True)
class PartLatency:
    """Latency of the requests of one class, tenant, model or cluster."""

    by: str
    name: str
    requests: int
    p50_ttft_s: float | None
    mean_ttlt_s: float | None
    p50_ttlt_s: float | None
    p99_ttlt_s: float | None
    mean_output_tokens: float | None


@dataclass(frozen=True)
class Scope:
    """What of the history is asked for."""

    span_s: float | None = None
    """Seconds before the newest finished request; None: all."""
    engine_id: str | None = None
    model: str | None = None

    @property
    def narrows(self) -> bool:
        """Whether some engines are left out."""
        return self.engine_id is not None or self.model is not None


@dataclass(frozen=True)
class Archive:
    """The history, or its last part, in figures."""

    rows: tuple[tuple[str, str, int], ...]
    """Table, what it holds, number of rows; of the whole history."""
    newest_s: float | None
    """When the last request ended; None when none did."""
    bucket_s: int
    ttft: tuple[Percentiles, ...] = ()
    ttlt: tuple[Percentiles, ...] = ()
    tpot: tuple[Percentiles, ...] = ()
    finished: tuple[tuple[float, int], ...] = ()
    """Start of each bucket with requests in it, and how many ended."""
    coverage: tuple[Coverage, ...] = ()
    parts: tuple[PartLatency, ...] = ()


def read_archive(path: Path, scope: Scope) -> Archive | ArchiveTrouble:
    """Sum what the scope asks for."""
    return read(path, partial(_summed, scope=scope))


def read(path: Path, reading: Callable[[duckdb.DuckDBPyConnection], Value]) -> Value | ArchiveTrouble:
    """Read something from the history on a connection of its own."""
    try:
        with open_history(path) as connection:
            return reading(connection)
    except StoreError as error:
        return ArchiveTrouble("absent", str(error))
    except duckdb.Error as error:
        return ArchiveTrouble("unreadable", str(error).splitlines()[0])


def bucket_s(span_s: float) -> int:
    """Choose the width of a bucket.

    >>> bucket_s(3600), bucket_s(24 * 3600), bucket_s(1e12)
    (60, 900, 86400)
    """
    return next((width for width in BUCKETS_S if span_s / width <= BUCKETS_SHOWN), BUCKETS_S[-1])


def bounds(connection: duckdb.DuckDBPyConnection, scope: Scope) -> tuple[float, float] | None:
    """From when to when the scope reaches; None where no request has finished in it.

    Narrows the session's view of the engines to those that are asked for.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE chosen AS " + CHOSEN, _narrowing(scope))
    where = "WHERE session_id IN (FROM temp.chosen)" if scope.narrows else ""
    oldest_s, newest_s = connection.execute(f"{BOUNDS} {where}").fetchall()[0]
    if newest_s is None:
        return None
    # No chart can show more than this; without the limit one wrong clock would make it endless.
    whole_s = min(newest_s - oldest_s, BUCKETS_SHOWN * BUCKETS_S[-1])
    return newest_s - (whole_s if scope.span_s is None else min(scope.span_s, whole_s)), newest_s


def read_settings(
    path: Path, engine_id: str | None, model: str | None, limit: int
) -> list[dict[str, Any]] | ArchiveTrouble:
    """The latest settings of the operator and of the engines, newest first, by headings for people."""

    def rows(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
        return records(connection.execute(SETTINGS, {"engine_id": engine_id, "model": model, "limit": limit}))

    return read(path, rows)


def records(result: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The rows of a result that was just asked for, by the names of its columns."""
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _narrowing(scope: Scope) -> dict[str, str | None]:
    return {"engine_id": scope.engine_id, "model": scope.model}


def _summed(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> Archive:
    rows = tuple(_counted(connection, name, comment) for name, comment in connection.execute(TABLES).fetchall())
    found = bounds(connection, scope)
    if found is None:
        return Archive(rows, None, BUCKETS_S[0])
    since_s, newest_s = found
    width = bucket_s(newest_s - since_s)
    range_ = {"since_s": since_s, "until_s": newest_s, "width_s": width, "all": not scope.narrows}
    buckets = connection.execute(LATENCIES, range_).fetchall()
    del range_["until_s"]
    outcomes = connection.execute(COVERAGE, range_).fetchall()
    del range_["width_s"]
    parts = connection.execute(PARTS, range_ | {"limit": PARTED}).fetchall()
    return Archive(
        rows=rows,
        newest_s=newest_s,
        bucket_s=width,
        ttft=tuple(Percentiles(row[0], row[1] or 0, *row[3:6]) for row in buckets),
        ttlt=tuple(Percentiles(row[0], row[2] or 0, *row[6:9]) for row in buckets),
        tpot=tuple(Percentiles(row[0], row[2] or 0, *row[9:12]) for row in buckets),
        finished=tuple((row[0], row[1] or 0) for row in buckets),
        coverage=tuple(Coverage(*row) for row in outcomes),
        parts=tuple(PartLatency(*row) for row in parts),
    )


def _counted(connection: duckdb.DuckDBPyConnection, name: str, comment: str | None) -> tuple[str, str, int]:
    # The name comes from the catalog itself.
    query = REQUESTS if name == "requests" else f'SELECT count(*) FROM "{name}"'  # noqa: S608 - see above
    (number,) = connection.execute(query).fetchall()[0]
    return name, comment or "", int(number)


TABLES = """
SELECT view_name, comment FROM duckdb_views()
WHERE database_name = 'catalog' AND NOT internal AND view_name IN (
    'requests', 'arrivals', 'first_tokens', 'completions', 'preemptions', 'snapshots', 'engines', 'predictions',
    'decisions', 'outcomes', 'drift_events', 'settings_history'
)
ORDER BY view_name
"""

REQUESTS = """
SELECT count(DISTINCT hash(session_id, request_id)) FROM (
    SELECT session_id, request_id FROM arrivals UNION ALL SELECT session_id, request_id FROM completions
)
"""
"""Rows of the view, without joining what belongs to each, which takes a second for a million."""

BOUNDS = "SELECT min(time_s), max(time_s) FROM completions"

LATENCIES = """
WITH buckets AS (
    SELECT $width_s * unnest(range(
        floor($since_s / $width_s)::BIGINT, floor($until_s / $width_s)::BIGINT + 1
    )) AS start_s
),
ended AS (
    SELECT
        $width_s * floor(time_s / $width_s) AS start_s,
        first_token_s - arrival_s AS ttft_s,
        CASE WHEN reason IN ('stop', 'length') THEN time_s - arrival_s END AS ttlt_s,
        CASE WHEN reason IN ('stop', 'length') AND output_tokens > 1 THEN (time_s - first_token_s) / (output_tokens - 1) END AS tpot_s
    FROM completions WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
)
SELECT
    buckets.start_s, count(ended.start_s), count(ttlt_s),
    quantile_cont(ttft_s, 0.5), quantile_cont(ttft_s, 0.9), quantile_cont(ttft_s, 0.99),
    quantile_cont(ttlt_s, 0.5), quantile_cont(ttlt_s, 0.9), quantile_cont(ttlt_s, 0.99),
    quantile_cont(tpot_s, 0.5), quantile_cont(tpot_s, 0.9), quantile_cont(tpot_s, 0.99)
FROM buckets LEFT JOIN ended USING (start_s)
GROUP BY buckets.start_s ORDER BY buckets.start_s
"""
"""Latencies of each bucket, empty ones too, so that a chart shows a gap where nothing ended."""

COVERAGE = """
SELECT
    $width_s * floor(time_s / $width_s) AS start_s,
    avg(within_50::INTEGER),
    avg(within_90::INTEGER)
FROM outcomes WHERE time_s >= $since_s AND NOT censored AND ($all OR session_id IN (FROM temp.chosen))
GROUP BY start_s ORDER BY start_s
"""

CHOSEN = """
SELECT DISTINCT session_id FROM engines
WHERE ($engine_id IS NULL OR engine_id = $engine_id) AND ($model IS NULL OR model = $model)
"""

PARTS = """
WITH ended AS (
    SELECT session_id, request_id, first_token_s - arrival_s AS ttft_s, time_s - arrival_s AS ttlt_s, output_tokens
    FROM completions
    WHERE time_s >= $since_s AND reason IN ('stop', 'length') AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
),
sent AS (
    SELECT session_id, request_id, any_value(priority) AS priority, any_value(tenant) AS tenant
    FROM arrivals SEMI JOIN ended USING (session_id, request_id) GROUP BY ALL
),
believed AS (
    SELECT session_id, request_id, any_value(cluster) AS cluster
    FROM outcomes SEMI JOIN ended USING (session_id, request_id) WHERE cluster IS NOT NULL GROUP BY ALL
),
served AS (SELECT session_id, any_value(model) AS model FROM engines GROUP BY ALL),
named AS (
    SELECT ended.*, priority::VARCHAR AS class, coalesce(tenant, 'none') AS tenant, model, cluster::VARCHAR AS cluster
    FROM ended LEFT JOIN sent USING (session_id, request_id) LEFT JOIN served USING (session_id)
    LEFT JOIN believed USING (session_id, request_id)
),
kinds AS (UNPIVOT named ON class, tenant, model, cluster INTO NAME kind VALUE name)
SELECT
    kind, name, count(*) AS requests, quantile_cont(ttft_s, 0.5), avg(ttlt_s), quantile_cont(ttlt_s, 0.5),
    quantile_cont(ttlt_s, 0.99), avg(output_tokens)
FROM kinds GROUP BY kind, name
QUALIFY row_number() OVER (PARTITION BY kind ORDER BY count(*) DESC, name) <= 20
ORDER BY list_position(['class', 'tenant', 'model', 'cluster'], kind), requests DESC, name
"""
"""Latency by class, tenant, model and cluster: the twenty largest of each, of the latest requests."""

SETTINGS = """
SELECT
    time_s, coalesce(nullif(engine_id, ''), 'all') AS "Engine", mode AS "Mode", reason AS "Why", gate_margin AS "Margin",
    gate_horizon_tokens AS "Horizon", boost_per_s AS "Boost (1/s)", victims AS "Gives way"
FROM settings_history
WHERE ($engine_id IS NULL OR engine_id IN ('', $engine_id))
    AND ($model IS NULL OR engine_id = '' OR session_id IN (SELECT session_id FROM engines WHERE model = $model))
ORDER BY time_s DESC LIMIT $limit
"""
