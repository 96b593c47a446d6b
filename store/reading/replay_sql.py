"""Named queries about a span of one run of an engine, with bound parameters; `controller.replay.read_history` reads them.

``$since_s`` and ``$until_s`` bound arrivals in Unix seconds, ``$session_id`` names the run, ``$limit`` bounds the rows;
``$engine_id`` and ``$model`` may be NULL for all.
"""

from __future__ import annotations

RUN_TABLES = (
    *("arrivals", "completions", "engines", "first_tokens", "predictions", "preemptions", "promises"),
    *("settings_history", "snapshots"),
)
"""Tables that record a run, apart from the index tables sent to its engine."""

SPAN = """
SELECT arrival_s FROM completions
WHERE arrival_s >= $since_s AND arrival_s < $until_s AND ($engine_id IS NULL OR engine_id = $engine_id)
    AND ($model IS NULL OR session_id IN (SELECT session_id FROM engines WHERE model = $model))
ORDER BY arrival_s DESC LIMIT 1 OFFSET $limit
"""
"""Arrival of the completed request that has ``$limit`` later ones."""

RUNS = """
WITH served AS (
    SELECT
        session_id, arg_max(engine_id, time_s) AS engine_id, arg_max(model, time_s) AS model,
        arg_max(kv_blocks, time_s) AS kv_blocks, arg_max(block_size_tokens, time_s) AS block_size_tokens,
        arg_max(max_num_seqs, time_s) AS max_num_seqs, arg_max(token_budget, time_s) AS token_budget,
        arg_max(max_model_len_tokens, time_s) AS max_model_len_tokens
    FROM engines GROUP BY session_id
),
ended AS (
    SELECT session_id, count(*) AS requests, max(time_s) AS last_s
    FROM completions WHERE arrival_s >= $since_s AND arrival_s < $until_s GROUP BY session_id
)
SELECT served.*, requests, last_s FROM served JOIN ended USING (session_id)
WHERE ($engine_id IS NULL OR engine_id = $engine_id) AND ($model IS NULL OR model = $model)
ORDER BY engine_id, last_s
"""
"""Runs of engines that requests of the span arrived in, with their sizes and when the last of these ended."""

REQUESTS = """
WITH reported AS (
    SELECT
        request_id, min(arrival_s) AS arrival_s, any_value(prompt_tokens) AS prompt_tokens,
        any_value(max_tokens) AS max_tokens, any_value(priority) AS priority, max(attained_tokens) AS attained_tokens
    FROM arrivals WHERE session_id = $session_id AND arrival_s < $last_s GROUP BY request_id
),
ended AS (
    SELECT * FROM completions WHERE session_id = $session_id AND arrival_s < $last_s AND time_s > $begin_s
),
ongoing AS (
    SELECT * FROM reported ANTI JOIN (SELECT request_id FROM completions WHERE session_id = $session_id) USING (request_id)
),
running AS (
    SELECT unnest(running_requests) AS r FROM snapshots
    WHERE session_id = $session_id
        AND time_s = (
            SELECT max(time_s) FROM snapshots WHERE session_id = $session_id AND running_requests IS NOT NULL
        )
),
begun AS (
    SELECT request_id, min(time_s) AS first_token_s FROM first_tokens SEMI JOIN ongoing USING (request_id)
    WHERE session_id = $session_id GROUP BY request_id
),
interrupted AS (
    SELECT request_id, max(attained_tokens) AS attained_tokens FROM preemptions SEMI JOIN ongoing USING (request_id)
    WHERE session_id = $session_id GROUP BY request_id
),
served AS (
    SELECT
        ended.request_id, ended.arrival_s, ended.prompt_tokens, output_tokens, ended.max_tokens, priority, scheduled_s,
        first_token_s, time_s AS finished_s, cached_prompt_tokens, preemptions, recomputed_tokens,
        ended.arrival_s >= $since_s AND ended.arrival_s < $until_s AND reason IN ('stop', 'length') AS counted,
        reason IN ('abort', 'error') AS "left"
    FROM ended LEFT JOIN reported USING (request_id)
    UNION ALL
    SELECT
        ongoing.request_id, arrival_s, prompt_tokens,
        greatest(ongoing.attained_tokens, coalesce(r.attained_tokens, 0), coalesce(interrupted.attained_tokens, 0)),
        max_tokens, priority, NULL, first_token_s, NULL, 0, 0, 0, false, false
    FROM ongoing LEFT JOIN running ON r.request_id = ongoing.request_id
        LEFT JOIN begun ON begun.request_id = ongoing.request_id
        LEFT JOIN interrupted ON interrupted.request_id = ongoing.request_id
),
predicted AS (
    SELECT
        request_id,
        arg_min([p10_tokens, p25_tokens, p50_tokens, p75_tokens, p90_tokens, p95_tokens, p99_tokens], received_s) AS tokens,
        arg_min(cluster, received_s) AS cluster
    FROM predictions SEMI JOIN served USING (request_id)
    WHERE session_id = $session_id AND NOT map_contains(experts, 'semantic') GROUP BY request_id
),
promised AS (
    SELECT request_id, service_class, targets_ttft_s, targets_tpot_s, targets_e2e_s
    FROM promises SEMI JOIN served USING (request_id) WHERE session_id = $session_id
    QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY received_s) = 1
)
SELECT
    served.* REPLACE (coalesce(priority, 0) AS priority), tokens, cluster, service_class, targets_ttft_s, targets_tpot_s,
    targets_e2e_s
FROM served LEFT JOIN predicted USING (request_id) LEFT JOIN promised USING (request_id)
ORDER BY arrival_s, request_id
"""
"""Requests of the span and those that were in the engine at the same time, each with its first prediction and promise.

An unfinished request has the output tokens that it had attained in the last snapshot.
"""

RUNNING = """
SELECT time_s, running_requests FROM snapshots
WHERE session_id = $session_id AND time_s <= $since_s AND running_requests IS NOT NULL ORDER BY time_s DESC LIMIT 1
"""
"""What ran when the span began, with the output tokens that each had."""

STEPS = """
WITH numbered AS (
    SELECT steps, step_s, prefill_tokens, decode_tokens, kv_tokens_read,
        row_number() OVER (ORDER BY time_s) - 1 AS number, count(*) OVER () AS total
    FROM snapshots WHERE session_id = $session_id AND time_s >= $since_s AND time_s <= $last_s AND steps > 0
)
SELECT steps, step_s, prefill_tokens, decode_tokens, kv_tokens_read FROM numbered
WHERE number % greatest(1, ceil(total / $limit)::BIGINT) = 0 ORDER BY number
"""
"""Steps as snapshots sum them up, evenly thinned to the limit."""

PACE = """
WITH summed AS (
    SELECT
        time_s, sum(steps) OVER by_time AS steps, sum(step_s) OVER by_time AS step_s,
        sum(prefill_tokens) OVER by_time AS prefill_tokens, sum(decode_tokens) OVER by_time AS decode_tokens,
        sum(kv_tokens_read) OVER by_time AS kv_tokens_read,
        list_transform(running_requests, lambda r: r.request_id) AS ran
    FROM snapshots WHERE session_id = $session_id AND time_s >= $since_s AND time_s <= $last_s
    WINDOW by_time AS (ORDER BY time_s)
),
paired AS (
    SELECT
        time_s, time_s - lag(time_s) OVER by_time AS elapsed_s, steps - lag(steps) OVER by_time AS steps,
        step_s - lag(step_s) OVER by_time AS step_s, prefill_tokens - lag(prefill_tokens) OVER by_time AS prefill_tokens,
        decode_tokens - lag(decode_tokens) OVER by_time AS decode_tokens,
        kv_tokens_read - lag(kv_tokens_read) OVER by_time AS kv_tokens_read, ran, lag(ran) OVER by_time AS ran_before
    FROM summed WHERE ran IS NOT NULL WINDOW by_time AS (ORDER BY time_s)
)
SELECT
    max(time_s) AS time_s, sum(elapsed_s) AS elapsed_s, sum(steps)::BIGINT AS steps, sum(step_s) AS step_s,
    sum(prefill_tokens)::BIGINT AS prefill_tokens, sum(decode_tokens)::BIGINT AS decode_tokens,
    sum(kv_tokens_read)::BIGINT AS kv_tokens_read
FROM paired WHERE steps > 0 AND list_has_any(ran, ran_before)
GROUP BY floor(time_s / greatest($part_s, ($last_s - $since_s) / $limit)) ORDER BY 1
"""
"""What was done in parts of the span while a request ran throughout, so that the engine was never idle."""

MODES = """
WITH seen AS (
    SELECT time_s, mode, lag(mode) OVER (ORDER BY time_s) AS before
    FROM snapshots WHERE session_id = $session_id AND time_s >= $first_s AND time_s <= $last_s
)
SELECT time_s, mode FROM seen WHERE before IS DISTINCT FROM mode ORDER BY time_s
"""
"""The mode in force in the engine, and every change of it."""

MODE_SINCE = """
WITH seen AS (
    SELECT time_s, mode, lag(mode) OVER (ORDER BY time_s) AS before FROM snapshots WHERE session_id = $session_id
),
spans AS (
    SELECT mode, time_s, lead(time_s) OVER (ORDER BY time_s) AS until_s FROM seen WHERE before IS DISTINCT FROM mode
)
SELECT max(until_s) AS since_s FROM spans
WHERE until_s - time_s >= $shortest_s AND mode <> (SELECT arg_max(mode, time_s) FROM spans)
"""
"""When the present mode of an engine came into force, apart from interruptions that were shorter than ``$shortest_s``."""

MODE_SHARES = """
SELECT mode, count(*) / sum(count(*)) OVER () AS share
FROM snapshots WHERE session_id = $session_id AND time_s >= $since_s AND time_s <= $last_s
GROUP BY mode ORDER BY share DESC
"""
"""Share of the snapshots that each mode was in force in."""

ORDERS = """
SELECT *, session_id = '' AND reason <> 'start' AS mode_only
FROM settings_history WHERE session_id IN ('', $session_id) AND time_s <= $last_s ORDER BY received_s, time_s
"""
"""Settings in the order in which they were sent; a switch of all engines' mode leaves their own reserve and boost."""

TABLES = """
SELECT time_s, request_id, attained_tokens, table_index_s AS index_s, growth_tokens
FROM decisions WHERE session_id = $session_id AND time_s >= $first_s AND time_s <= $last_s ORDER BY time_s
"""
"""Index tables that were published."""
