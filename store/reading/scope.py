"""Selection of finished requests by engine, part and bucket of time, shared by all readers that sum them."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from store.http_api import BANDS_PER_DECADE
from store.http_requests import Cell

BUCKETS_S = (60, 300, 900, 3600, 7200, 21_600, 86_400)
BUCKETS_SHOWN = 150
"""The finest width is taken that gives no more buckets than this."""

PART_KINDS = ("class", "tenant", "model", "cluster")
"""Properties by which requests are split."""


@dataclass(frozen=True)
class Part:
    """The requests of one class, tenant, model or cluster."""

    by: str
    name: str


@dataclass(frozen=True)
class Scope:
    """The selected part of the history."""

    span_s: float | None = None
    """Seconds before the newest finished request; None: all."""
    engine_id: str | None = None
    model: str | None = None
    part: Part | None = None
    """None: all requests."""

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


def bounds(connection: duckdb.DuckDBPyConnection, scope: Scope) -> tuple[float, float] | None:
    """From when to when the scope reaches; None where no request has finished in it.

    Narrows the session's view of the engines to those that are asked for.
    """
    choose(connection, scope)
    where = "WHERE session_id IN (FROM temp.chosen)" if scope.narrows else ""
    oldest_s, newest_s = connection.execute(f"{BOUNDS} {where}").fetchall()[0]
    if newest_s is None:
        return None
    # No chart can show more than this; without the limit one wrong clock would make it endless.
    whole_s = min(newest_s - oldest_s, BUCKETS_SHOWN * BUCKETS_S[-1])
    return newest_s - (whole_s if scope.span_s is None else min(scope.span_s, whole_s)), newest_s


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
