"""The recorded history, read for the pages; trouble is a value, never an exception.

The statements read the catalog's views and nothing else, each on a connection that cannot change anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb

from dashboard.data.series import BANDS_PER_DECADE, Cell
from store.errors import StoreError
from store.history.reader import open_history

BUCKETS_S = (60, 300, 900, 3600, 7200, 21_600, 86_400)
BUCKETS_SHOWN = 150
"""The finest width is taken that gives no more buckets than this."""


Value = TypeVar("Value")


@dataclass(frozen=True)
class ArchiveTrouble:
    """Why there is no history to show."""

    kind: Literal["absent", "unreadable"]
    detail: str


PART_KINDS = ("class", "tenant", "model", "cluster")
"""What requests are told apart by."""


@dataclass(frozen=True)
class Part:
    """The requests of one class, tenant, model or cluster."""

    by: str
    name: str


@dataclass(frozen=True)
class Scope:
    """What of the history is asked for."""

    span_s: float | None = None
    """Seconds before the newest finished request; None: all."""
    engine_id: str | None = None
    model: str | None = None
    part: Part | None = None
    """None: all requests."""

    @property
    def narrows(self) -> bool:
        """Whether some engines are left out."""
        return self.engine_id is not None or self.model is not None


@dataclass(frozen=True)
class Traffic:
    """What is recorded, and what requests asked for and got."""

    rows: tuple[tuple[str, str, int], ...]
    """Table, what it holds, number of rows; of the whole history."""
    newest_s: float | None
    """When the last request ended; None when none did."""
    bucket_s: int
    finished: tuple[tuple[float, str, int], ...] = ()
    """Start of each bucket with requests in it, how they ended, and how many."""
    prompts: tuple[Cell, ...] = ()
    """Lengths of the prompts of the requests that ended."""
    outputs: tuple[Cell, ...] = ()
    """Lengths of their answers."""
    limits: tuple[Cell, ...] = ()
    """Their max_tokens."""


def read_traffic(path: Path, scope: Scope) -> Traffic | ArchiveTrouble:
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


def take_ended(connection: duckdb.DuckDBPyConnection, scope: Scope, since_s: float, width_s: int) -> None:
    """Put the requests of the scope that ended since then into the temporary table ``ended``, each in its bucket."""
    part = scope.part
    condition = "" if part is None else f"AND {_OF_PART[part.by]}"
    given = {"since_s": since_s, "width_s": width_s, "all": not scope.narrows}
    connection.execute(_ENDED.format(part=condition), given | ({} if part is None else {"part": part.name}))


def heat(connection: duckdb.DuckDBPyConnection, column: str, width_s: int) -> tuple[Cell, ...]:
    """Count the requests of ``ended`` by bucket and by the band of a column's value."""
    rows = connection.execute(_HEAT.format(column=column), {"bands": BANDS_PER_DECADE}).fetchall()
    return tuple(Cell(bucket * width_s, band, requests) for bucket, band, requests in rows)


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


def _summed(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> Traffic:
    rows = tuple(_counted(connection, name, comment) for name, comment in connection.execute(TABLES).fetchall())
    found = bounds(connection, scope)
    if found is None:
        return Traffic(rows, None, BUCKETS_S[0])
    since_s, newest_s = found
    width = bucket_s(newest_s - since_s)
    take_ended(connection, scope, since_s, width)
    return Traffic(
        rows=rows,
        newest_s=newest_s,
        bucket_s=width,
        finished=tuple((bucket * width, *rest) for bucket, *rest in connection.execute(_REASONS).fetchall()),
        prompts=heat(connection, "prompt_tokens", width),
        outputs=heat(connection, "output_tokens", width),
        limits=heat(connection, "max_tokens", width),
    )


def _counted(connection: duckdb.DuckDBPyConnection, name: str, comment: str | None) -> tuple[str, str, int]:
    # The name comes from the catalog itself.
    query = REQUESTS if name == "requests" else f'SELECT count(*) FROM "{name}"'
    (number,) = connection.execute(query).fetchall()[0]
    return name, comment or "", int(number)


TABLES = """
SELECT view_name, comment FROM duckdb_views()
WHERE database_name = 'catalog' AND NOT internal AND view_name IN (
    'requests', 'arrivals', 'first_tokens', 'completions', 'preemptions', 'snapshots', 'engines', 'predictions',
    'decisions', 'outcomes', 'drift_events', 'settings_history', 'calibration', 'cluster_changes'
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

CHOSEN = """
SELECT DISTINCT session_id FROM engines
WHERE ($engine_id IS NULL OR engine_id = $engine_id) AND ($model IS NULL OR model = $model)
"""

_OF_PART = {
    "class": "(session_id, request_id) IN (SELECT (session_id, request_id) FROM arrivals WHERE priority::VARCHAR = $part)",
    "tenant": (
        "(session_id, request_id) IN"
        " (SELECT (session_id, request_id) FROM arrivals WHERE coalesce(tenant, 'none') = $part)"
    ),
    "model": "session_id IN (SELECT session_id FROM engines WHERE model = $part)",
    "cluster": "(session_id, request_id) IN (SELECT (session_id, request_id) FROM outcomes WHERE cluster::VARCHAR = $part)",
}
"""What holds of the requests of a part."""

_ENDED = """
CREATE OR REPLACE TEMP TABLE ended AS
SELECT
    floor(time_s / $width_s)::INTEGER AS bucket,
    reason, prompt_tokens, output_tokens, max_tokens,
    (first_token_s - arrival_s)::FLOAT AS ttft_s,
    CASE WHEN reason IN ('stop', 'length') THEN (time_s - arrival_s)::FLOAT END AS ttlt_s,
    CASE WHEN reason IN ('stop', 'length') AND output_tokens > 1
        THEN ((time_s - first_token_s) / (output_tokens - 1))::FLOAT END AS tpot_s,
    CASE WHEN reason IN ('stop', 'length') THEN (scheduled_s - arrival_s)::FLOAT END AS queue_s
FROM completions
WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen)) {part}
"""

_HEAT = """
SELECT bucket, floor($bands * log10({column}))::INTEGER AS band, count(*)
FROM temp.ended WHERE {column} > 0 GROUP BY ALL ORDER BY ALL
"""

_REASONS = "SELECT bucket, reason, count(*) FROM temp.ended GROUP BY ALL ORDER BY ALL"

SETTINGS = """
SELECT
    time_s, coalesce(nullif(engine_id, ''), 'all') AS "Engine", mode AS "Mode", reason AS "Why", gate_margin AS "Margin",
    gate_horizon_tokens AS "Horizon", boost_per_s AS "Boost (1/s)", victims AS "Gives way"
FROM settings_history
WHERE ($engine_id IS NULL OR engine_id IN ('', $engine_id))
    AND ($model IS NULL OR engine_id = '' OR session_id IN (SELECT session_id FROM engines WHERE model = $model))
ORDER BY time_s DESC LIMIT $limit
"""
