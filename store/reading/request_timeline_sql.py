"""Named queries about one request, with bound parameters; `store.reading.request_timeline` puts their answers together.

``$request_id`` and ``$session_id`` name the request, ``$since_s`` and ``$until_s`` bound its time in Unix seconds,
``$started_s`` is when it first got a place, ``$limit`` bounds the rows.
"""

from __future__ import annotations

IS_RECORDED = """
SELECT request_id FROM arrivals WHERE request_id = $request_id
UNION ALL
SELECT request_id FROM completions WHERE request_id = $request_id LIMIT 1
"""
"""Its id, if a request of this very id is recorded."""

RECORDED_ID = """
SELECT request_id
FROM (SELECT request_id, arrival_s FROM arrivals UNION ALL SELECT request_id, arrival_s FROM completions)
WHERE regexp_full_match(request_id, $of_client)
ORDER BY arrival_s DESC, request_id LIMIT 1
"""
"""The engine's id of the latest request behind the answer whose id the client knows, by a regular expression."""

SESSIONS = """
SELECT session_id, any_value(engine_id) AS engine_id, min(arrival_s) AS arrival_s
FROM (
    SELECT session_id, engine_id, arrival_s FROM arrivals WHERE request_id = $request_id
    UNION ALL
    SELECT session_id, engine_id, arrival_s FROM completions WHERE request_id = $request_id
)
GROUP BY session_id ORDER BY arrival_s DESC
"""
"""Sessions of engines that knew a request of this name, the latest first."""

ARRIVAL = """
SELECT arrival_s, prompt_tokens, max_tokens, temperature, priority, tenant, lora, session
FROM arrivals WHERE session_id = $session_id AND request_id = $request_id
ORDER BY resent, received_s LIMIT 1
"""
"""Its arrival, as first reported."""

FIRST_STEP = """
SELECT scheduled_s, time_s AS first_token_s, cached_prompt_tokens
FROM first_tokens WHERE session_id = $session_id AND request_id = $request_id ORDER BY received_s LIMIT 1
"""
"""Its first place in a step and its first token."""

COMPLETION = """
SELECT
    arrival_s, prompt_tokens, max_tokens, scheduled_s, first_token_s, time_s AS finished_s, reason, output_tokens,
    cached_prompt_tokens, recomputed_tokens, preemptions, itl_max_s, itl_p99_s, shed
FROM completions WHERE session_id = $session_id AND request_id = $request_id LIMIT 1
"""
"""Its end."""

PROMISED = """
SELECT
    service_class, objective, account, CASE WHEN coalesce(targets_ttft_s, targets_tpot_s, targets_e2e_s) IS NOT NULL
        THEN {ttft_s: targets_ttft_s, tpot_s: targets_tpot_s, e2e_s: targets_e2e_s} END AS targets
FROM promises WHERE session_id = $session_id AND request_id = $request_id ORDER BY received_s DESC LIMIT 1
"""
"""Its service class and its targets."""

ENGINE = """
SELECT model, block_size_tokens, max_num_seqs FROM engines WHERE session_id = $session_id ORDER BY time_s LIMIT 1
"""
"""The engine that served it."""

PREDICTED = """
SELECT
    time_s, cluster, mean_tokens, p10_tokens, p25_tokens, p50_tokens, p75_tokens, p90_tokens, p95_tokens, p99_tokens,
    evidence, experts
FROM predictions WHERE session_id = $session_id AND request_id = $request_id ORDER BY received_s LIMIT 1
"""
"""The predicted distribution of its output length at its arrival."""

CHOICES = """
SELECT time_s, policy, reason, cost_s, index_s, attained_tokens, table_index_s
FROM decisions WHERE session_id = $session_id AND request_id = $request_id ORDER BY time_s LIMIT $limit
"""
"""The index tables that were published for it."""

LOSSES = """
SELECT time_s, lost_tokens, attained_tokens, cause
FROM preemptions WHERE session_id = $session_id AND request_id = $request_id ORDER BY time_s LIMIT $limit
"""
"""Its preemptions."""

SCORED = """
SELECT pit, crps_tokens, within_50, within_90, censored
FROM outcomes WHERE session_id = $session_id AND request_id = $request_id LIMIT 1
"""
"""How the prediction turned out."""

MOMENTS = """
WITH seen AS (
    SELECT
        time_s, waiting, running, kv_blocks_used, kv_blocks, admission_limit, reserved_blocks, mode, fallback,
        CASE WHEN queue IS NOT NULL THEN {
            ahead: list_position(queue, $request_id) - 1,
            head_id: queue[1],
            attained_tokens:
                list_filter(running_requests, lambda r: r.request_id = $request_id)[1].attained_tokens
        } END AS named
    FROM snapshots
    WHERE session_id = $session_id AND time_s >= $since_s - 1.0 AND time_s <= $until_s
),
placed AS (
    SELECT * EXCLUDE (named), unnest(last_value(named IGNORE NULLS) OVER (ORDER BY time_s)) FROM seen
),
numbered AS (SELECT *, row_number() OVER (ORDER BY time_s) - 1 AS number, count(*) OVER () AS total FROM placed),
heads AS (
    SELECT request_id, any_value(prompt_tokens) AS prompt_tokens
    FROM arrivals WHERE session_id = $session_id AND request_id IN (SELECT head_id FROM placed) GROUP BY request_id
)
SELECT
    time_s, waiting, running, kv_blocks_used, kv_blocks, admission_limit, reserved_blocks, mode, fallback,
    ahead, heads.prompt_tokens AS head_prompt_tokens, attained_tokens
FROM numbered LEFT JOIN heads ON heads.request_id = head_id
WHERE number % greatest(1, ceil(total / $limit)::BIGINT) = 0
ORDER BY time_s
"""
"""The engine's snapshots from its arrival to its end, evenly thinned to the limit, and its place in each."""

COMPETING = """
WITH placed AS (
    SELECT request_id, arrival_s, scheduled_s, prompt_tokens
    FROM completions
    WHERE session_id = $session_id AND scheduled_s > $since_s AND scheduled_s <= $started_s
        AND request_id <> $request_id
    UNION ALL
    SELECT f.request_id, a.arrival_s, f.scheduled_s, a.prompt_tokens
    FROM first_tokens AS f
    JOIN arrivals AS a ON a.session_id = f.session_id AND a.request_id = f.request_id AND NOT a.resent
    ANTI JOIN completions AS c ON c.session_id = f.session_id AND c.request_id = f.request_id
    WHERE f.session_id = $session_id AND f.scheduled_s > $since_s AND f.scheduled_s <= $started_s
        AND f.request_id <> $request_id AND a.arrival_s <= $started_s
),
classed AS (
    SELECT request_id, any_value(priority) AS priority
    FROM arrivals SEMI JOIN placed USING (request_id)
    WHERE session_id = $session_id AND arrival_s <= $started_s GROUP BY request_id
),
chosen AS (
    SELECT placed.request_id, arg_max(table_index_s[1], time_s) AS index_s
    FROM placed JOIN decisions ON decisions.session_id = $session_id AND decisions.request_id = placed.request_id
    WHERE time_s <= $started_s AND time_s <= placed.scheduled_s GROUP BY placed.request_id
)
SELECT request_id, arrival_s, scheduled_s, prompt_tokens, coalesce(priority, 0) AS priority, index_s
FROM placed LEFT JOIN classed USING (request_id) LEFT JOIN chosen USING (request_id)
ORDER BY arrival_s <= $since_s, scheduled_s, request_id LIMIT $limit
"""
"""Requests that were given their first place while it waited: those that came later first."""

ORDERS = """
SELECT time_s, reason, mode, boost_per_s, gate_horizon_tokens
FROM settings_history
WHERE session_id IN ('', $session_id) AND time_s <= $until_s
    AND time_s >= coalesce(
        (SELECT max(time_s) FROM settings_history WHERE session_id IN ('', $session_id) AND time_s <= $since_s), 0.0
    )
ORDER BY time_s LIMIT $limit
"""
"""The settings in force at its arrival and every change until its end."""

DRIFTS = """
SELECT time_s, before_mean_tokens, after_mean_tokens
FROM drift_events
WHERE model = $model AND cluster = $cluster AND time_s >= $since_s AND time_s <= $until_s
ORDER BY time_s LIMIT $limit
"""
"""Drifts of its cluster's length distribution until its end."""

LATEST = "SELECT max(time_s) FROM snapshots WHERE session_id = $session_id"
"""Time of the engine's last snapshot."""
