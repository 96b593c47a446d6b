"""Reads the recorded history for the pages; failures are returned as values, never raised.

The statements read the catalog's views and nothing else, each on a connection that cannot change anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb

from store.errors import StoreError
from store.history.reader import open_history
from store.http_requests import Cell, LoadPoint
from store.reading.load import COMMITTED_S, read_load
from store.reading.scope import BUCKETS_S, Scope, bounds, bucket_s, heat, take_ended

Value = TypeVar("Value")


@dataclass(frozen=True)
class ArchiveTrouble:
    """Why there is no history to show."""

    kind: Literal["absent", "unreadable"]
    detail: str


@dataclass(frozen=True)
class Traffic:
    """What is recorded, and what requests asked for and got."""

    rows: tuple[tuple[str, str, int], ...]
    """Table, what it holds, number of rows; of the whole history."""
    newest_s: float | None
    """When the last request ended, in the range or before it; None when none did."""
    bucket_s: int
    since_s: float = 0.0
    until_s: float = 0.0
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


@dataclass(frozen=True)
class RecordedLoad:
    """The load of engines over a span of the past."""

    since_s: float
    until_s: float
    points: tuple[LoadPoint, ...]


def read_recorded_load(path: Path, scope: Scope, bins: int) -> RecordedLoad | ArchiveTrouble | None:
    """The load of the scope's engines in that many bins; None where no request of theirs has ended by its end."""
    return read(path, partial(_load, scope=scope, bins=bins))


def _load(connection: duckdb.DuckDBPyConnection, *, scope: Scope, bins: int) -> RecordedLoad | None:
    found = bounds(connection, scope)
    if found is None:
        return None
    bin_s = found.span_s / bins
    load = read_load(connection, scope, found.since_s - bin_s, bin_s, found.until_s + COMMITTED_S)
    return RecordedLoad(found.since_s, found.until_s, load.points)


def read(path: Path, reading: Callable[[duckdb.DuckDBPyConnection], Value]) -> Value | ArchiveTrouble:
    """Read something from the history on a connection of its own."""
    try:
        with open_history(path) as connection:
            return reading(connection)
    except StoreError as error:
        return ArchiveTrouble("absent", str(error))
    except duckdb.Error as error:
        return ArchiveTrouble("unreadable", str(error).splitlines()[0])


def read_settings(
    path: Path, engine_id: str | None, model: str | None, limit: int
) -> list[dict[str, Any]] | ArchiveTrouble:
    """The latest settings of the operator and of the engines, newest first, by headings for people."""

    def rows(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
        return records(connection.execute(SETTINGS, {"engine_id": engine_id, "model": model, "limit": limit}))

    return read(path, rows)


def read_switches(path: Path, limit: int) -> list[dict[str, Any]] | ArchiveTrouble:
    """Who switched the mode, the latest first, by headings for people."""
    return read(path, lambda connection: records(connection.execute(SWITCHES, {"limit": limit})))


def holds_prompts(path: Path) -> bool:
    """Whether prompts are stored in the history, or may be, for it cannot be read whole; False where there is none."""
    found = read(path, lambda connection: connection.execute(STORED_PROMPT).fetchone())
    return found.kind != "absent" if isinstance(found, ArchiveTrouble) else found is not None


def records(result: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The rows of a result that was just asked for, by the names of its columns."""
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _summed(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> Traffic:
    rows = tuple(_counted(connection, name, comment) for name, comment in connection.execute(TABLES).fetchall())
    found = bounds(connection, scope)
    if found is None:
        return Traffic(rows, None, BUCKETS_S[0])
    width = bucket_s(found.span_s)
    take_ended(connection, scope, found.since_s, width)
    return Traffic(
        rows=rows,
        newest_s=found.newest_s,
        bucket_s=width,
        since_s=found.since_s,
        until_s=found.until_s,
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
    'decisions', 'outcomes', 'drift_events', 'settings_history', 'calibration', 'cluster_changes', 'promises'
)
ORDER BY view_name
"""

REQUESTS = """
SELECT count(DISTINCT hash(session_id, request_id)) FROM (
    SELECT session_id, request_id FROM arrivals UNION ALL SELECT session_id, request_id FROM completions
)
"""
"""Rows of the view, without joining what belongs to each, which takes a second for a million."""

_REASONS = "SELECT bucket, reason, count(*) FROM temp.ended GROUP BY ALL ORDER BY ALL"

STORED_PROMPT = "SELECT 1 FROM arrivals WHERE token_ids IS NOT NULL LIMIT 1"

SWITCHES = """
SELECT
    time_s, before || ' → ' || mode AS "Mode", reason AS "Why", coalesce(who, '') AS "Name given",
    CASE credential WHEN 'token' THEN 'http.token' ELSE 'none (same machine)' END AS "Credential", address AS "From"
FROM mode_switches ORDER BY time_s DESC LIMIT $limit
"""

SETTINGS = """
SELECT
    time_s, coalesce(nullif(engine_id, ''), 'all') AS "Engine", mode AS "Mode", reason AS "Why", gate_margin AS "Margin",
    gate_horizon_tokens AS "Horizon", boost_per_s AS "Boost (1/s)", victims AS "Preempted first"
FROM settings_history
WHERE ($engine_id IS NULL OR engine_id IN ('', $engine_id))
    AND ($model IS NULL OR engine_id = '' OR session_id IN (SELECT session_id FROM engines WHERE model = $model))
ORDER BY time_s DESC LIMIT $limit
"""
