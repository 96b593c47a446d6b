"""Named queries over the catalog, with bound parameters, for the dashboard and the API.

``$since_s`` and ``$until_s`` bound the time in Unix seconds, ``$engine_id`` may be NULL for all engines,
``$bucket_s`` is the width of a point in time, ``$limit`` bounds the rows.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa


def fetch(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float | str | None) -> pa.Table:
    """The answer to a named query as an Arrow table; the keywords are the query's parameters, without the dollar."""
    return connection.sql(query, params=parameters).to_arrow_table()


LATENCY_BY_MINUTE = """
SELECT * FROM latency_by_minute
WHERE minute_s >= $since_s - 60 AND minute_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
ORDER BY minute_s, engine_id
"""
"""Latency percentiles, requests and tokens by minute."""

LATENCY_SUMMARY = """
SELECT
    count(*) AS requests,
    avg(time_s - arrival_s) AS mean_ttlt_s,
    quantile_cont(time_s - arrival_s, 0.5) AS p50_ttlt_s,
    quantile_cont(time_s - arrival_s, 0.9) AS p90_ttlt_s,
    quantile_cont(time_s - arrival_s, 0.99) AS p99_ttlt_s,
    max(time_s - arrival_s) AS max_ttlt_s,
    avg(first_token_s - arrival_s) AS mean_ttft_s,
    quantile_cont(first_token_s - arrival_s, 0.99) AS p99_ttft_s,
    sum(output_tokens)::BIGINT AS output_tokens,
    sum(preemptions)::BIGINT AS preemptions,
    sum(recomputed_tokens)::BIGINT AS recomputed_tokens
FROM completions
WHERE reason IN ('stop', 'length') AND time_s >= $since_s AND time_s < $until_s
    AND ($engine_id IS NULL OR engine_id = $engine_id)
"""
"""The same over the whole span, for answers that came to their end."""

PREDICTIONS_AND_OUTCOMES = """
WITH latest AS (
    SELECT * FROM outcomes
    WHERE time_s >= $since_s AND time_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
    ORDER BY time_s DESC LIMIT $limit
),
believed AS (
    SELECT session_id, request_id, arg_min(predictions, received_s) AS p
    FROM predictions SEMI JOIN latest USING (session_id, request_id) GROUP BY ALL
)
SELECT
    latest.engine_id, latest.request_id, latest.time_s, latest.output_tokens, latest.censored, latest.cluster,
    latest.pit, latest.crps_tokens, latest.log_score, latest.within_50, latest.within_90,
    p.mean_tokens, p.p10_tokens, p.p25_tokens, p.p50_tokens, p.p75_tokens, p.p90_tokens, p.p99_tokens, p.evidence
FROM latest JOIN believed USING (session_id, request_id)
ORDER BY latest.time_s
"""
"""The latest outcomes beside what was predicted when the request arrived."""

PIT_HISTOGRAM = """
SELECT least(floor(pit * 10), 9)::BIGINT AS tenth, count(*) AS outcomes
FROM outcomes
WHERE NOT censored AND time_s >= $since_s AND time_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
GROUP BY tenth ORDER BY tenth
"""
"""Outcomes by tenth of the probability integral transform; level when the predictions are calibrated."""

CALIBRATION_BY_DAY = """
SELECT * FROM calibration_by_day WHERE $engine_id IS NULL OR engine_id = $engine_id ORDER BY day, engine_id
"""
"""Coverage and scores of the predictions by day."""

LATEST_CALIBRATION = """
SELECT * FROM calibration WHERE time_s >= $since_s AND time_s < $until_s
QUALIFY row_number() OVER (PARTITION BY model, scope, cluster ORDER BY time_s DESC, received_s DESC) = 1
ORDER BY model, scope DESC, cluster
"""
"""What was last measured of each model and each of its clusters."""

TRUST_CHANGES = """
SELECT * FROM calibration WHERE reason <> 'due' AND time_s >= $since_s AND time_s < $until_s
ORDER BY time_s DESC LIMIT $limit
"""
"""When predictions lost or regained the guard's trust, and why."""

ENGINE_OVER_TIME = """
SELECT
    $bucket_s * floor(time_s / $bucket_s) AS bucket_start_s,
    engine_id,
    avg(kv_blocks_used / nullif(kv_blocks, 0)) AS mean_kv_share,
    max(kv_blocks_used / nullif(kv_blocks, 0)) AS max_kv_share,
    avg(waiting) AS mean_waiting,
    avg(running) AS mean_running,
    avg(admission_limit) AS mean_admission_limit,
    avg(reserved_blocks) AS mean_reserved_blocks,
    sum(decode_tokens) / $bucket_s AS decode_tokens_per_s,
    sum(prefill_tokens) / $bucket_s AS prefill_tokens_per_s,
    sum(recomputed_tokens)::BIGINT AS recomputed_tokens,
    sum(preemptions)::BIGINT AS preemptions,
    sum(steps)::BIGINT AS steps,
    sum(step_s) / nullif(sum(steps), 0) AS mean_step_s,
    sum(hook_s) / nullif(sum(steps), 0) AS mean_hook_s,
    any_value(fallback) AS fallback
FROM snapshots
WHERE time_s >= $since_s AND time_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
GROUP BY bucket_start_s, engine_id ORDER BY bucket_start_s, engine_id
"""
"""KV use, queue, throughput and step time of each engine over time, from its snapshots."""

REQUESTS_OVER_TIME = """
SELECT
    $bucket_s * floor(time_s / $bucket_s) AS bucket_start_s,
    count(*) / $bucket_s AS requests_per_s,
    sum(output_tokens) / $bucket_s AS output_tokens_per_s
FROM completions
WHERE time_s >= $since_s AND time_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
GROUP BY bucket_start_s ORDER BY bucket_start_s
"""
"""Completions and their tokens over time."""

LATEST_REQUESTS = """
SELECT * FROM requests
WHERE arrival_s >= $since_s AND arrival_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
ORDER BY arrival_s DESC LIMIT $limit
"""
"""The requests that arrived last."""

REQUEST = "SELECT * FROM requests WHERE request_id = $request_id ORDER BY arrival_s DESC"
"""The life of one request; more than one row when several sessions used the id."""

REQUEST_DECISIONS = "SELECT * FROM decisions WHERE request_id = $request_id ORDER BY time_s"
"""The index tables that were published for one request, and why."""

REQUEST_PREEMPTIONS = "SELECT * FROM preemptions WHERE request_id = $request_id ORDER BY time_s"
"""When one request lost its place."""

DRIFT_EVENTS = """
SELECT * FROM drift_events WHERE time_s >= $since_s AND time_s < $until_s ORDER BY time_s DESC LIMIT $limit
"""
"""Length distributions that moved."""

SETTINGS_HISTORY = """
SELECT * FROM settings_history WHERE time_s >= $since_s AND time_s < $until_s ORDER BY time_s DESC LIMIT $limit
"""
"""Settings sent to the engines."""

ENGINES = """
SELECT * FROM engines
QUALIFY row_number() OVER (PARTITION BY engine_id ORDER BY time_s DESC, received_s DESC) = 1
ORDER BY engine_id
"""
"""What was last heard of each engine."""

TABLE_COUNTS = """
SELECT 'arrivals' AS table_name, count(*) AS rows FROM arrivals
UNION ALL SELECT 'first_tokens', count(*) FROM first_tokens
UNION ALL SELECT 'preemptions', count(*) FROM preemptions
UNION ALL SELECT 'completions', count(*) FROM completions
UNION ALL SELECT 'snapshots', count(*) FROM snapshots
UNION ALL SELECT 'engines', count(*) FROM engines
UNION ALL SELECT 'predictions', count(*) FROM predictions
UNION ALL SELECT 'decisions', count(*) FROM decisions
UNION ALL SELECT 'outcomes', count(*) FROM outcomes
UNION ALL SELECT 'drift_events', count(*) FROM drift_events
UNION ALL SELECT 'settings_history', count(*) FROM settings_history
UNION ALL SELECT 'calibration', count(*) FROM calibration
UNION ALL SELECT 'batches', count(*) FROM batches
"""
"""Sealed rows of each table."""

TIME_SPAN = """
SELECT min(arrival_s) AS first_s, max(time_s) AS last_s, count(*) AS requests FROM completions
"""
"""From when to when the history reaches; NULL in an empty one."""

QUERIES = {
    "latency_by_minute": LATENCY_BY_MINUTE,
    "latency_summary": LATENCY_SUMMARY,
    "predictions_and_outcomes": PREDICTIONS_AND_OUTCOMES,
    "pit_histogram": PIT_HISTOGRAM,
    "calibration_by_day": CALIBRATION_BY_DAY,
    "latest_calibration": LATEST_CALIBRATION,
    "trust_changes": TRUST_CHANGES,
    "engine_over_time": ENGINE_OVER_TIME,
    "requests_over_time": REQUESTS_OVER_TIME,
    "latest_requests": LATEST_REQUESTS,
    "request": REQUEST,
    "request_decisions": REQUEST_DECISIONS,
    "request_preemptions": REQUEST_PREEMPTIONS,
    "drift_events": DRIFT_EVENTS,
    "settings_history": SETTINGS_HISTORY,
    "engines": ENGINES,
    "table_counts": TABLE_COUNTS,
    "time_span": TIME_SPAN,
}
"""All of them by name."""
