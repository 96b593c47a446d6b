"""The last state of the engines that the history holds, for when the controller is gone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import msgspec

from dashboard.data.archive import ArchiveTrouble, read, records
from store.http_now import EngineNow, Event, LatencyNow, LatencyPoint
from store.http_requests import LoadPoint
from store.reading.load import read_load
from store.reading.scope import TRUSTED, Scope, choose

SPAN_S = 600.0
"""Time before the last moment that is charted."""
BINS = 60
EVENTS = 8


@dataclass(frozen=True)
class LastKnown:
    """What the engines said last, and how requests fared until then; as *Now* has it of the present."""

    time_s: float
    """When an engine reported last."""
    engines: tuple[EngineNow, ...]
    ttft: LatencyNow
    ttlt: LatencyNow
    load: tuple[LoadPoint, ...]
    events: tuple[Event, ...]
    """The latest first."""


def read_last_known(path: Path, engine_id: str | None, model: str | None) -> LastKnown | ArchiveTrouble | None:
    """The last state of the chosen engines; None where none has ever reported."""
    return read(path, partial(_last_known, scope=Scope(engine_id=engine_id, model=model)))


def _last_known(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> LastKnown | None:
    choose(connection, scope)
    (last_s,) = connection.execute(_LAST).fetchall()[0]
    if last_s is None:
        return None
    bin_s = SPAN_S / BINS
    load = read_load(connection, scope, last_s - SPAN_S - bin_s, bin_s)
    engines = records(connection.execute(_ENGINES, {"last_s": last_s}))
    events = records(connection.execute(_EVENTS, {"last_s": last_s, "limit": EVENTS}))
    return LastKnown(
        time_s=last_s,
        engines=tuple(msgspec.convert(engines, list[EngineNow])),
        ttft=_latency(connection, last_s, "first_token_s"),
        ttlt=_latency(connection, last_s, "time_s"),
        load=load.points,
        events=tuple(msgspec.convert(events, list[Event])),
    )


def _latency(connection: duckdb.DuckDBPyConnection, last_s: float, end: str) -> LatencyNow:
    """Of the last minute, of the five minutes before, and in bins of 15 seconds."""
    given = {"last_s": last_s}
    requests, last, before = connection.execute(_LATENCY.format(end=end), given).fetchall()[0]
    points = {back: quantiles for back, *quantiles in connection.execute(_TREND.format(end=end), given).fetchall()}
    return LatencyNow(
        requests=requests,
        p50_s=last and last[0],
        p99_s=last and last[1],
        before_p50_s=before,
        points=tuple(LatencyPoint(last_s - 15.0 * back, *points.get(back, ())) for back in reversed(range(60))),
    )


_LAST = f"""
SELECT coalesce(max(time_s) FILTER ({TRUSTED}), max(time_s))
FROM snapshots WHERE isfinite(time_s) AND session_id IN (FROM temp.chosen)
"""
_ENGINES = """
WITH minute AS (
    SELECT * FROM snapshots
    WHERE time_s > $last_s - 60 AND time_s <= $last_s AND session_id IN (FROM temp.chosen)
),
latest AS (FROM minute QUALIFY row_number() OVER (PARTITION BY engine_id ORDER BY time_s DESC) = 1),
rates AS (
    SELECT session_id, sum(decode_tokens) / 60.0 AS output_tokens_per_s, sum(preemptions)::DOUBLE AS preemptions_per_minute
    FROM minute GROUP BY session_id
),
known AS (FROM engines QUALIFY row_number() OVER (PARTITION BY session_id ORDER BY time_s DESC) = 1),
ended AS (
    SELECT session_id, quantile_cont(first_token_s - arrival_s, [0.5, 0.99]) AS ttft_s
    FROM completions WHERE time_s > $last_s - 60 AND time_s <= $last_s GROUP BY session_id
)
SELECT
    latest.engine_id, known.model, known.engine || ' ' || known.engine_version AS version,
    CASE WHEN fallback IS NULL THEN latest.mode ELSE 'fallback' END AS state, latest.mode, waiting, running,
    kv_blocks_used / nullif(latest.kv_blocks, 0) AS kv_share, output_tokens_per_s,
    ttft_s[1] AS ttft_p50_s, ttft_s[2] AS ttft_p99_s, preemptions_per_minute,
    latest.time_s AS last_seen_s
FROM latest JOIN known USING (session_id) JOIN rates USING (session_id) LEFT JOIN ended USING (session_id)
ORDER BY latest.engine_id
"""
_ENDED = """
ended AS (
    SELECT time_s, {end} - arrival_s AS took_s FROM completions
    WHERE time_s > $last_s - 900 AND time_s <= $last_s AND reason IN ('stop', 'length')
        AND session_id IN (FROM temp.chosen)
)
"""
_LATENCY = f"""
WITH {_ENDED}
SELECT
    count(took_s) FILTER (time_s > $last_s - 60),
    quantile_cont(took_s, [0.5, 0.99]) FILTER (time_s > $last_s - 60),
    quantile_cont(took_s, 0.5) FILTER (time_s > $last_s - 360 AND time_s <= $last_s - 60)
FROM ended
"""
_TREND = f"""
WITH {_ENDED}
SELECT floor(($last_s - time_s) / 15)::INTEGER AS back, quantile_cont(took_s, 0.5), quantile_cont(took_s, 0.99)
FROM ended GROUP BY back
"""
_EVENTS = """
WITH reported AS (
    SELECT
        time_s, engine_id, fallback, lag(fallback) OVER reports AS before, row_number() OVER reports AS number
    FROM snapshots WHERE time_s > $last_s - 3600 AND time_s <= $last_s
    WINDOW reports AS (PARTITION BY session_id ORDER BY time_s)
)
SELECT
    time_s, CASE event WHEN 'left' THEN 'engine left' WHEN 'lost' THEN 'engine lost' ELSE 'engine up' END AS kind,
    CASE event WHEN 'left' THEN 'info' WHEN 'lost' THEN 'red' ELSE 'green' END AS level, engine_id,
    'engine ' || engine_id || ' ' || event || ' (' || engine || ' ' || engine_version || ', model ' || model || ')' AS text
FROM engines
UNION ALL
SELECT
    time_s, 'mode', IF(mode = 'on', 'info', 'amber'), engine_id, 'mode of all engines: ' || mode || ' (' || reason || ')'
FROM mode_switches
UNION ALL
SELECT
    time_s, 'drift', 'info', engine_id,
    printf('output lengths of model %s, cluster %d changed: mean %.0f -> %.0f tokens', model, cluster, before_mean_tokens, after_mean_tokens)
FROM drift_events
UNION ALL
SELECT
    time_s, IF(fallback IS NULL, 'order back', 'fallback'), IF(fallback IS NULL, 'green', 'amber'), engine_id,
    'engine ' || engine_id || coalesce(' serves first come, first served: ' || fallback, ' follows the controller again')
FROM reported WHERE number > 1 AND fallback IS DISTINCT FROM before
ORDER BY time_s DESC LIMIT $limit
"""
"""Worded as the controller does while it is there."""
