"""Latencies of the recorded history: percentiles, heatmaps, phases and parts; trouble is a value."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import duckdb

from dashboard.data.archive import ArchiveTrouble, Scope, bounds, bucket_s, heat, read, take_ended
from dashboard.data.latencies import PARTS_SHOWN, Latencies, PartLatency
from dashboard.data.series import Percentiles, Phases

PARTED = 50_000
"""The latest so many requests are told apart by class, tenant, model and cluster; all would take seconds."""


def read_latencies(path: Path, scope: Scope) -> Latencies | ArchiveTrouble:
    """Sum what the scope asks for."""
    return read(path, partial(_summed, scope=scope))


def _summed(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> Latencies:
    found = bounds(connection, scope)
    if found is None:
        return Latencies(None)
    since_s, newest_s = found
    width = bucket_s(newest_s - since_s)
    take_ended(connection, scope, since_s, width)
    rows = {row[0]: row for row in connection.execute(_BUCKETS).fetchall()}
    # Empty buckets too, so that a chart shows a gap where nothing ended.
    numbers = range(int(since_s // width), int(newest_s // width) + 1)
    buckets = [rows.get(number) or (number, 0, 0, 0, *[None] * 6) for number in numbers]
    counts = connection.execute("SELECT count(ttlt_s), count(*) - count(ttlt_s) FROM temp.ended").fetchall()[0]
    return Latencies(
        newest_s=newest_s,
        bucket_s=width,
        ttft=tuple(_percentiles(row[0] * width, row[1], row[4]) for row in buckets),
        ttlt=tuple(_percentiles(row[0] * width, row[2], row[5]) for row in buckets),
        tpot=tuple(_percentiles(row[0] * width, row[3], row[6]) for row in buckets),
        ttft_heat=heat(connection, "ttft_s", width),
        ttlt_heat=heat(connection, "ttlt_s", width),
        tpot_heat=heat(connection, "tpot_s", width),
        phases=tuple(Phases(row[0] * width, *row[7:10]) for row in buckets),
        parts=_parts(connection, scope, since_s),
        whole=counts[0],
        cut=counts[1],
    )


def _percentiles(time_s: float, requests: int, quantiles: list[float] | None) -> Percentiles:
    p50_s, p90_s, p99_s = quantiles or (None, None, None)
    return Percentiles(time_s, requests, p50_s, p90_s, p99_s)


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
    return tuple(PartLatency(*row) for row in connection.execute(_PARTS, since).fetchall())


_BUCKETS = """
SELECT
    bucket, count(ttft_s), count(ttlt_s), count(tpot_s),
    quantile_cont(ttft_s, [0.5, 0.9, 0.99]), quantile_cont(ttlt_s, [0.5, 0.9, 0.99]),
    quantile_cont(tpot_s, [0.5, 0.9, 0.99]), avg(queue_s), avg(ttft_s - queue_s), avg(ttlt_s - ttft_s)
FROM temp.ended GROUP BY bucket
"""

_LATEST = """
SELECT min(time_s), min(arrival_s) FROM (
    SELECT time_s, arrival_s FROM completions
    WHERE time_s >= $since_s AND reason IN ('stop', 'length') AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
)
"""

_PARTS = """
WITH lately AS (
    SELECT session_id, request_id, first_token_s - arrival_s AS ttft_s, time_s - arrival_s AS ttlt_s, output_tokens
    FROM completions
    WHERE time_s >= $since_s AND reason IN ('stop', 'length') AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
),
sent AS (
    SELECT session_id, request_id, any_value(priority) AS priority, any_value(tenant) AS tenant
    FROM arrivals SEMI JOIN lately USING (session_id, request_id) WHERE arrival_s >= $arrival_s GROUP BY ALL
),
believed AS (
    SELECT session_id, request_id, any_value(cluster) AS cluster
    FROM outcomes SEMI JOIN lately USING (session_id, request_id)
    WHERE time_s >= $since_s AND cluster IS NOT NULL GROUP BY ALL
),
served AS (SELECT session_id, any_value(model) AS model FROM engines GROUP BY ALL),
named AS (
    SELECT lately.*, priority::VARCHAR AS class, coalesce(tenant, 'none') AS tenant, model, cluster::VARCHAR AS cluster
    FROM lately LEFT JOIN sent USING (session_id, request_id) LEFT JOIN served USING (session_id)
    LEFT JOIN believed USING (session_id, request_id)
),
kinds AS (UNPIVOT named ON class, tenant, model, cluster INTO NAME kind VALUE name)
SELECT
    kind, name, count(*) AS requests, quantile_cont(ttft_s, 0.5), avg(ttlt_s), quantile_cont(ttlt_s, 0.5),
    quantile_cont(ttlt_s, 0.99), avg(output_tokens)
FROM kinds GROUP BY kind, name
QUALIFY row_number() OVER (PARTITION BY kind ORDER BY count(*) DESC, name) <= $shown
ORDER BY list_position(['class', 'tenant', 'model', 'cluster'], kind), requests DESC, name
"""
"""Latency by class, tenant, model and cluster: the largest of each, of the latest requests."""
