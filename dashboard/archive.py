"""The recorded history, summed for the page *History*; trouble is a value, never an exception.

The statements read the catalog's views and nothing else, each on a connection that cannot change anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from dashboard.series import Percentiles
from store.errors import StoreError
from store.reader import open_history

BUCKETS_S = (60, 300, 900, 3600, 7200, 21_600, 86_400)
BUCKETS_SHOWN = 150
"""The finest width is taken that gives no more buckets than this."""


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
class Archive:
    """The history, or its last part, in figures."""

    rows: tuple[tuple[str, str, int], ...]
    """Table, what it holds, number of rows; of the whole history."""
    newest_s: float | None
    """When the last request ended; None when none did."""
    bucket_s: int
    ttft: tuple[Percentiles, ...] = ()
    ttlt: tuple[Percentiles, ...] = ()
    finished: tuple[tuple[float, int], ...] = ()
    """Start of each bucket with requests in it, and how many ended."""
    coverage: tuple[Coverage, ...] = ()


def read_archive(path: Path, span_s: float | None) -> Archive | ArchiveTrouble:
    """Sum the last ``span_s`` seconds before the newest finished request, or all with None."""
    try:
        with open_history(path) as connection:
            return _summed(connection, span_s)
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


def _summed(connection: duckdb.DuckDBPyConnection, span_s: float | None) -> Archive:
    rows = tuple(_counted(connection, name, comment) for name, comment in connection.execute(TABLES).fetchall())
    oldest_s, newest_s = connection.execute(BOUNDS).fetchall()[0]
    if newest_s is None:
        return Archive(rows, None, BUCKETS_S[0])
    # No chart can show more than this; without the limit one wrong clock would make it endless.
    whole_s = min(newest_s - oldest_s, BUCKETS_SHOWN * BUCKETS_S[-1])
    shown_s = whole_s if span_s is None else min(span_s, whole_s)
    width = bucket_s(shown_s)
    range_ = {"since_s": newest_s - shown_s, "width_s": width}
    buckets = connection.execute(LATENCIES, range_).fetchall()
    outcomes = connection.execute(COVERAGE, range_).fetchall()
    return Archive(
        rows=rows,
        newest_s=newest_s,
        bucket_s=width,
        ttft=tuple(Percentiles(start_s, count or 0, *rest[:3]) for start_s, count, _, *rest in buckets),
        ttlt=tuple(Percentiles(start_s, served or 0, *rest[3:]) for start_s, _, served, *rest in buckets),
        finished=tuple((start_s, count or 0) for start_s, count, *_ in buckets),
        coverage=tuple(Coverage(*row) for row in outcomes),
    )


def _counted(connection: duckdb.DuckDBPyConnection, name: str, comment: str | None) -> tuple[str, str, int]:
    # The name comes from the catalog itself.
    (number,) = connection.execute(f'SELECT count(*) FROM "{name}"').fetchall()[0]  # noqa: S608 - see above
    return name, comment or "", int(number)


TABLES = """
SELECT view_name, comment FROM duckdb_views()
WHERE database_name = 'catalog' AND NOT internal AND view_name IN (
    'requests', 'arrivals', 'first_tokens', 'completions', 'preemptions', 'snapshots', 'engines', 'predictions',
    'decisions', 'outcomes', 'drift_events', 'settings_history'
)
ORDER BY view_name
"""

BOUNDS = "SELECT min(time_s), max(time_s) FROM completions"

LATENCIES = """
WITH buckets AS (
    SELECT $width_s * unnest(range(
        floor($since_s / $width_s)::BIGINT, floor((SELECT max(time_s) FROM completions) / $width_s)::BIGINT + 1
    )) AS start_s
),
ended AS (
    SELECT
        $width_s * floor(time_s / $width_s) AS start_s,
        first_token_s - arrival_s AS ttft_s,
        CASE WHEN reason IN ('stop', 'length') THEN time_s - arrival_s END AS ttlt_s
    FROM completions WHERE time_s >= $since_s
)
SELECT
    buckets.start_s, count(ended.start_s), count(ttlt_s),
    quantile_cont(ttft_s, 0.5), quantile_cont(ttft_s, 0.9), quantile_cont(ttft_s, 0.99),
    quantile_cont(ttlt_s, 0.5), quantile_cont(ttlt_s, 0.9), quantile_cont(ttlt_s, 0.99)
FROM buckets LEFT JOIN ended USING (start_s)
GROUP BY buckets.start_s ORDER BY buckets.start_s
"""
"""Latencies of each bucket, empty ones too, so that a chart shows a gap where nothing ended."""

COVERAGE = """
SELECT
    $width_s * floor(time_s / $width_s) AS start_s,
    avg(within_50::INTEGER),
    avg(within_90::INTEGER)
FROM outcomes WHERE time_s >= $since_s AND NOT censored
GROUP BY start_s ORDER BY start_s
"""
