"""Latency statistics and the finished requests one by one, over any connection with the history's tables."""

from __future__ import annotations

from typing import NamedTuple

import duckdb
import msgspec

from store.bounds import bounded_name
from store.http_requests import FinishedPoint, LatenciesView, PartLatency, Percentiles, Phases
from store.reading.scope import Scope, bounds, bucket_s, choose, heat, take_ended

TABLES = ("arrivals", "completions", "engines", "outcomes", "predictions")
"""Tables that these queries read."""
PARTED = 50_000
"""Number of latest requests split by engine, class, tenant, model and cluster; splitting all would take seconds."""
PARTS_SHOWN = 20
"""Number of largest parts shown of each kind."""


class Window(NamedTuple):
    """A span of time in buckets of one width, all in seconds."""

    since_s: float
    until_s: float
    width_s: float


def read_latencies(connection: duckdb.DuckDBPyConnection, scope: Scope, window: Window | None = None) -> LatenciesView:
    """Percentiles, heatmaps, phases and parts of the requests that ended in the window; None: in the scope's span."""
    newest_s = None
    if window is None:
        found = bounds(connection, scope)
        if found is None:
            return LatenciesView(newest_s=None, bucket_s=60.0)
        newest_s = found.newest_s
        window = Window(found.since_s, found.until_s, bucket_s(found.span_s))
    else:
        choose(connection, scope)
    since_s, until_s, width_s = window
    take_ended(connection, scope, since_s, width_s)
    rows = {row[0]: row for row in connection.execute(_BUCKETS).fetchall()}
    # Empty buckets too, so that a chart shows a gap where nothing ended.
    numbers = range(int(since_s // width_s), int(until_s // width_s) + 1) if rows else ()
    buckets = [rows.get(number) or (number, 0, 0, 0, *[None] * 6) for number in numbers]
    whole, cut = connection.execute(_COUNTS).fetchall()[0]
    return LatenciesView(
        newest_s=until_s if newest_s is None and rows else newest_s,
        bucket_s=width_s,
        since_s=since_s,
        until_s=until_s,
        ttft=tuple(_percentiles(row[0] * width_s, row[1], row[4]) for row in buckets),
        ttlt=tuple(_percentiles(row[0] * width_s, row[2], row[5]) for row in buckets),
        tpot=tuple(_percentiles(row[0] * width_s, row[3], row[6]) for row in buckets),
        ttft_heat=heat(connection, "ttft_s", width_s),
        ttlt_heat=heat(connection, "ttlt_s", width_s),
        tpot_heat=heat(connection, "tpot_s", width_s),
        phases=tuple(Phases(row[0] * width_s, *row[7:10]) for row in buckets),
        totals=_totals(connection, since_s) if rows else {},
        parts=_parts(connection, scope, since_s),
        whole=whole,
        cut=cut,
    )


def read_finished(
    connection: duckdb.DuckDBPyConnection, scope: Scope, since_s: float, limit: int
) -> tuple[FinishedPoint, ...]:
    """The latest ``limit`` requests that ended since then, with what was predicted of them, oldest first."""
    choose(connection, scope)
    everyone = {"since_s": since_s, "all": not scope.narrows, "limit": limit}
    ended_s, arrival_s = connection.execute(_LATEST_ENDED, everyone).fetchall()[0]
    if ended_s is None:
        return ()
    given = everyone | {"since_s": ended_s, "arrival_s": arrival_s}
    rows = connection.sql(_FINISHED, params=given).to_arrow_table().to_pylist()
    return tuple(msgspec.convert(rows, list[FinishedPoint]))


def _percentiles(time_s: float, requests: int, quantiles: list[float] | None) -> Percentiles:
    p50_s, p90_s, p99_s = quantiles or (None, None, None)
    return Percentiles(time_s, requests, p50_s, p90_s, p99_s)


def _totals(connection: duckdb.DuckDBPyConnection, since_s: float) -> dict[str, Percentiles]:
    row = connection.execute(_TOTALS).fetchall()[0]
    return {name: _percentiles(since_s, *row[2 * at : 2 * at + 2]) for at, name in enumerate(("ttft", "ttlt", "tpot"))}


def _parts(connection: duckdb.DuckDBPyConnection, scope: Scope, since_s: float) -> tuple[PartLatency, ...]:
    everyone = {"since_s": since_s, "all": not scope.narrows}
    # Given as numbers these limits spare reading what lies before them; as subqueries they would not.
    ended_s, arrival_s = connection.execute(_LATEST, everyone | {"limit": PARTED}).fetchall()[0]
    if ended_s is None:
        return ()
    since = {
        "since_s": ended_s,
        "arrival_s": arrival_s,
        "all": not scope.narrows,
        "limit": PARTED,
        "shown": PARTS_SHOWN,
    }
    rows = connection.execute(_PARTS, since).fetchall()
    return tuple(PartLatency(kind, bounded_name(name), *figures) for kind, name, *figures in rows)


_BUCKETS = """
SELECT
    bucket, count(ttft_s), count(ttlt_s), count(tpot_s),
    quantile_cont(ttft_s, [0.5, 0.9, 0.99]), quantile_cont(ttlt_s, [0.5, 0.9, 0.99]),
    quantile_cont(tpot_s, [0.5, 0.9, 0.99]), avg(queue_s), avg(ttft_s - queue_s), avg(ttlt_s - ttft_s)
FROM temp.ended GROUP BY bucket
"""

_TOTALS = """
SELECT
    count(ttft_s), quantile_cont(ttft_s, [0.5, 0.9, 0.99]), count(ttlt_s), quantile_cont(ttlt_s, [0.5, 0.9, 0.99]),
    count(tpot_s), quantile_cont(tpot_s, [0.5, 0.9, 0.99])
FROM temp.ended
"""

_COUNTS = "SELECT count(ttlt_s), count(*) - count(ttlt_s) FROM temp.ended"

_LATEST = """
SELECT min(time_s), min(arrival_s) FROM (
    SELECT time_s, arrival_s FROM completions
    WHERE time_s >= $since_s AND reason IN ('stop', 'length') AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
)
"""

_PARTS = """
WITH lately AS (
    SELECT
        session_id, request_id, engine_id, first_token_s - arrival_s AS ttft_s, time_s - arrival_s AS ttlt_s,
        output_tokens, (time_s - first_token_s) / nullif(output_tokens - 1, 0) AS tpot_s
    FROM completions
    WHERE time_s >= $since_s AND reason IN ('stop', 'length') AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
),
sent AS (
    SELECT session_id, request_id, any_value(priority) AS priority, any_value(tenant) AS tenant
    FROM arrivals SEMI JOIN lately USING (session_id, request_id) WHERE arrival_s >= $arrival_s GROUP BY ALL
),
clustered AS (
    SELECT session_id, request_id, any_value(cluster) AS cluster
    FROM outcomes SEMI JOIN lately USING (session_id, request_id)
    WHERE time_s >= $since_s AND cluster IS NOT NULL GROUP BY ALL
),
served AS (SELECT session_id, any_value(model) AS model FROM engines GROUP BY ALL),
named AS (
    SELECT lately.* EXCLUDE engine_id, engine_id AS engine, priority::VARCHAR AS class, coalesce(tenant, 'none') AS tenant, model, cluster::VARCHAR AS cluster
    FROM lately LEFT JOIN sent USING (session_id, request_id) LEFT JOIN served USING (session_id)
    LEFT JOIN clustered USING (session_id, request_id)
),
kinds AS (UNPIVOT named ON engine, class, tenant, model, cluster INTO NAME kind VALUE name)
SELECT
    kind, name, count(*) AS requests, quantile_cont(ttft_s, 0.5), avg(ttlt_s), quantile_cont(ttlt_s, 0.5),
    quantile_cont(ttlt_s, 0.99), avg(output_tokens), quantile_cont(ttft_s, 0.99), quantile_cont(tpot_s, 0.5)
FROM kinds GROUP BY kind, name
QUALIFY row_number() OVER (PARTITION BY kind ORDER BY count(*) DESC, name) <= $shown
ORDER BY list_position(['engine', 'class', 'tenant', 'model', 'cluster'], kind), requests DESC, name
"""
"""Latency by engine, class, tenant, model and cluster: the largest of each, of the latest requests."""

_LATEST_ENDED = """
SELECT min(time_s), min(arrival_s) FROM (
    SELECT time_s, arrival_s FROM completions
    WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
)
"""

_FINISHED = """
WITH lately AS (
    SELECT * FROM completions WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
),
sent AS (
    SELECT session_id, request_id, any_value(priority) AS priority, any_value(tenant) AS tenant
    FROM arrivals SEMI JOIN lately USING (session_id, request_id) WHERE arrival_s >= $arrival_s GROUP BY ALL
),
predicted AS (
    SELECT
        session_id, request_id,
        arg_min({cluster: cluster, p10: p10_tokens, p50: p50_tokens, p90: p90_tokens}, received_s) AS first
    FROM predictions SEMI JOIN lately USING (session_id, request_id) WHERE time_s >= $arrival_s GROUP BY ALL
),
scored AS (
    SELECT session_id, request_id, any_value(pit) AS pit
    FROM outcomes SEMI JOIN lately USING (session_id, request_id) WHERE time_s >= $arrival_s GROUP BY ALL
)
SELECT
    request_id, engine_id, time_s, first_token_s - arrival_s AS ttft_s, time_s - arrival_s AS ttlt_s, output_tokens,
    reason, prompt_tokens, max_tokens, scheduled_s - arrival_s AS queue_s, priority, tenant, first.cluster AS cluster,
    first.p10 AS p10_tokens, first.p50 AS p50_tokens, first.p90 AS p90_tokens, pit
FROM lately LEFT JOIN sent USING (session_id, request_id) LEFT JOIN predicted USING (session_id, request_id)
LEFT JOIN scored USING (session_id, request_id)
ORDER BY time_s, request_id
"""
