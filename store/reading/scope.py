"""Selection of finished requests by engine, part and bucket of time, shared by all readers that sum them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import duckdb

from store.http_api import BANDS_PER_DECADE
from store.http_requests import Cell

BUCKETS_S = (60, 300, 900, 3600, 7200, 21_600, 86_400)
BUCKETS_SHOWN = 150
"""The finest width is taken that gives no more buckets than this."""

CLOCK_AHEAD_S = 3600.0
"""By how much an engine's clock may be ahead of the controller's, or this one of the reader's, before its times say nothing of what is newest."""

PART_KINDS = ("engine", "class", "tenant", "model", "cluster")
"""Properties by which requests are split."""


@dataclass(frozen=True)
class Part:
    """The requests of one engine, class, tenant, model or cluster."""

    by: str
    name: str


@dataclass(frozen=True)
class Scope:
    """The selected part of the history."""

    span_s: float | None = None
    """Seconds before its end; None: all."""
    engine_id: str | None = None
    model: str | None = None
    part: Part | None = None
    """None: all requests."""
    until_s: float | None = None
    """Its end in Unix seconds; None: the newest finished request."""

    @property
    def narrows(self) -> bool:
        """Whether some engines are excluded."""
        return self.engine_id is not None or self.model is not None


def bucket_s(span_s: float) -> int:
    """Choose the width of a bucket.

    >>> bucket_s(3600), bucket_s(24 * 3600), bucket_s(1e12)
    (60, 900, 86400)
    """
    return next((width for width in BUCKETS_S if span_s / width <= BUCKETS_SHOWN), BUCKETS_S[-1])


def choose(connection: duckdb.DuckDBPyConnection, scope: Scope) -> None:
    """Narrow the connection's temporary table ``chosen`` to the sessions of the engines that are asked for."""
    about = {"engine_id": scope.engine_id, "model": scope.model}
    connection.execute("CREATE OR REPLACE TEMP TABLE chosen AS " + CHOSEN, about)


class Bounds(NamedTuple):
    """From when to when a scope reaches, and when the last request in it or before it ended; Unix seconds."""

    since_s: float
    until_s: float
    newest_s: float

    @property
    def span_s(self) -> float:
        """Seconds from its begin to its end."""
        return self.until_s - self.since_s


def bounds(connection: duckdb.DuckDBPyConnection, scope: Scope) -> Bounds | None:
    """From when to when the scope reaches; None where no request of its engines has finished by its end.

    Narrows the connection's views to the engines that are asked for, and to what happened by the scope's end. One engine
    whose clock is years ahead does not move that end; where all are, theirs is taken.
    """
    choose(connection, scope)
    if scope.until_s is not None:
        _end_at(connection, scope.until_s)
    where = "WHERE session_id IN (FROM temp.chosen)" if scope.narrows else ""
    oldest_s, newest_s, last_s = connection.execute(f"{BOUNDS} {where}").fetchall()[0]
    if newest_s is None:
        return None
    until_s = newest_s if scope.until_s is None else scope.until_s
    if scope.until_s is None and last_s > newest_s:
        _end_at(connection, newest_s)
    # No chart can show more than this; without the limit one wrong clock would make it endless.
    whole_s = min(until_s - oldest_s, BUCKETS_SHOWN * BUCKETS_S[-1])
    return Bounds(until_s - (whole_s if scope.span_s is None else min(scope.span_s, whole_s)), until_s, newest_s)


def _end_at(connection: duckdb.DuckDBPyConnection, until_s: float) -> None:
    """Hide what happened later: queries find a temporary view before the catalog's of the same name."""
    for name in _TIMED:
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM catalog.{name} WHERE time_s <= {float(until_s)!r}"
        )


def take_ended(connection: duckdb.DuckDBPyConnection, scope: Scope, since_s: float, width_s: float) -> None:
    """Put the requests of the scope that ended since then into the temporary table ``ended``, each in its bucket."""
    part = scope.part
    condition = "" if part is None else f"AND {_OF_PART[part.by]}"
    given = {"since_s": since_s, "width_s": width_s, "all": not scope.narrows}
    connection.execute(_ENDED.format(part=condition), given | ({} if part is None else {"part": part.name}))


def heat(connection: duckdb.DuckDBPyConnection, column: str, width_s: float) -> tuple[Cell, ...]:
    """Count the requests of ``ended`` by bucket and by the band of a column's value."""
    rows = connection.execute(_HEAT.format(column=column), {"bands": BANDS_PER_DECADE}).fetchall()
    return tuple(Cell(bucket * width_s, band, requests) for bucket, band, requests in rows)


_TIMED = ("calibration", "cluster_changes", "completions", "drift_events", "outcomes", "predictions", "snapshots")

TRUSTED = f"time_s <= least(received_s, epoch(now())) + {CLOCK_AHEAD_S}"
"""SQL condition on a row: it did not happen long after the controller had received it, nor after it is read."""

BOUNDS = f"SELECT min(time_s), coalesce(max(time_s) FILTER ({TRUSTED}), max(time_s)), max(time_s) FROM completions"
"""When the first request ended, the last by a clock that is right or the last, and the last whatever its clock."""

CHOSEN = """
SELECT DISTINCT session_id FROM engines
WHERE ($engine_id IS NULL OR engine_id = $engine_id) AND ($model IS NULL OR model = $model)
"""

_OF_PART = {
    "engine": "engine_id = $part",
    "class": "(session_id, request_id) IN (SELECT (session_id, request_id) FROM arrivals WHERE priority::VARCHAR = $part)",
    "tenant": (
        "(session_id, request_id) IN"
        " (SELECT (session_id, request_id) FROM arrivals WHERE coalesce(tenant, 'none') = $part)"
    ),
    "model": "session_id IN (SELECT session_id FROM engines WHERE model = $part)",
    "cluster": "(session_id, request_id) IN (SELECT (session_id, request_id) FROM outcomes WHERE cluster::VARCHAR = $part)",
}
"""SQL condition on the requests of a part, by kind."""

_ENDED = """
CREATE OR REPLACE TEMP TABLE ended AS
SELECT
    floor(time_s / $width_s)::BIGINT AS bucket,
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
