"""Views of the catalog that join or sum what the tables hold, as SQL text; stable names for dashboards and people.

Each column of a view has its comment behind it; `statements` turns them into ``COMMENT ON``.
The tables' own views carry the comments of `store.history.tables`.
"""

from __future__ import annotations

import re

from store.history.tables import quoted

REQUESTS = """
CREATE VIEW requests AS  -- One row per request, with all that is known of it.
WITH again AS (
    SELECT * FROM arrivals WHERE resent
    QUALIFY row_number() OVER (PARTITION BY session_id, request_id ORDER BY received_s) = 1
),
first_reported AS NOT MATERIALIZED (
    SELECT * FROM arrivals WHERE NOT resent
    UNION ALL
    SELECT * FROM again ANTI JOIN (
        SELECT session_id, request_id FROM arrivals SEMI JOIN again USING (session_id, request_id) WHERE NOT resent
    ) USING (session_id, request_id)
),
first_predicted AS (
    SELECT * FROM predictions ANTI JOIN again USING (session_id, request_id)
    WHERE NOT map_contains(experts, 'semantic')
    UNION ALL
    SELECT * FROM predictions SEMI JOIN again USING (session_id, request_id)
    QUALIFY row_number() OVER (PARTITION BY session_id, request_id ORDER BY received_s) = 1
),
preempted AS (
    SELECT session_id, request_id, count(*) AS preemptions, sum(lost_tokens)::BIGINT AS lost_tokens
    FROM preemptions GROUP BY ALL
),
served AS (SELECT session_id, any_value(model) AS model FROM engines GROUP BY ALL),
served_requests AS (
    SELECT
        c.engine_id, c.session_id, c.request_id, c.received_s, c.arrival_s, c.scheduled_s, c.first_token_s,
        c.time_s AS finished_s, c.reason, c.prompt_tokens, c.output_tokens, c.max_tokens, c.cached_prompt_tokens,
        c.expected_cached_tokens, c.preemptions, c.recomputed_tokens, a.temperature, a.priority, a.tenant, a.lora
    FROM completions AS c
    LEFT JOIN first_reported AS a ON a.session_id = c.session_id AND a.request_id = c.request_id
    UNION ALL
    SELECT
        a.engine_id, a.session_id, a.request_id, a.received_s, a.arrival_s, f.scheduled_s, f.time_s,
        NULL, NULL, a.prompt_tokens, NULL, a.max_tokens, f.cached_prompt_tokens,
        NULL, coalesce(p.preemptions, 0), p.lost_tokens, a.temperature, a.priority, a.tenant, a.lora
    FROM first_reported AS a
    ANTI JOIN completions AS c ON c.session_id = a.session_id AND c.request_id = a.request_id
    LEFT JOIN first_tokens AS f ON f.session_id = a.session_id AND f.request_id = a.request_id
    LEFT JOIN preempted AS p ON p.session_id = a.session_id AND p.request_id = a.request_id
)
SELECT
    l.engine_id,  -- Engine that served it.
    l.session_id,  -- Session of that engine.
    l.request_id,  -- The engine's name of the request, unique within the session.
    s.model,  -- Model that served it.
    l.arrival_s,  -- When it entered the engine, Unix seconds.
    TRY(make_timestamp((l.arrival_s * 1e6)::BIGINT)) AS arrival,  -- The same as a timestamp, UTC.
    l.scheduled_s,  -- When it was first given a place in a step; NULL if not yet.
    l.first_token_s,  -- When its first output token was generated; NULL if not yet.
    l.finished_s,  -- When it ended; NULL while it is unfinished.
    l.scheduled_s - l.arrival_s AS queue_s,  -- Time in the queue before its first step.
    l.first_token_s - l.arrival_s AS ttft_s,  -- Time to first token.
    l.finished_s - l.arrival_s AS ttlt_s,  -- Time to last token: arrival to completion.
    CASE WHEN l.output_tokens > 1 THEN (l.finished_s - l.first_token_s) / (l.output_tokens - 1) END AS tpot_s,  -- Time per output token after the first.
    l.reason,  -- stop, length, abort or error; NULL while it is unfinished.
    l.prompt_tokens,  -- Length of the prompt.
    l.output_tokens,  -- Tokens generated; NULL while it is unfinished.
    l.max_tokens,  -- Limit on the output that it came with.
    l.cached_prompt_tokens,  -- Prompt tokens found in the prefix cache.
    l.expected_cached_tokens,  -- Prompt tokens that the plan expected there before its first step; NULL if it did not look, or while it is unfinished.
    l.preemptions,  -- How often it was preempted so far.
    l.recomputed_tokens,  -- Tokens recomputed, or to be recomputed, because of that.
    l.temperature,  -- Sampling temperature; NULL if its arrival was lost.
    l.priority,  -- Its own strict class; NULL if its arrival was lost.
    l.tenant,  -- Sender of the request, if the engine knows it.
    l.lora,  -- LoRA adapter, if any.
    p.cluster,  -- Prompt cluster of its first prediction.
    p.mean_tokens,  -- Expected output length of its first prediction.
    p.p10_tokens,  -- 10 % quantile of its first prediction.
    p.p25_tokens,  -- 25 % quantile.
    p.p50_tokens,  -- Median.
    p.p75_tokens,  -- 75 % quantile.
    p.p90_tokens,  -- 90 % quantile.
    p.p95_tokens,  -- 95 % quantile.
    p.p99_tokens,  -- 99 % quantile.
    p.evidence  -- Effective number of past answers behind that prediction.
FROM served_requests AS l
LEFT JOIN first_predicted AS p ON p.session_id = l.session_id AND p.request_id = l.request_id
LEFT JOIN served AS s ON s.session_id = l.session_id"""

LATENCY_BY_MINUTE = """
CREATE VIEW latency_by_minute AS  -- Latencies of the requests that ended in each minute; aborted and failed ones only counted.
SELECT
    TRY(make_timestamp((60 * floor(time_s / 60) * 1e6)::BIGINT)) AS minute,  -- Start of the minute, UTC.
    60 * floor(time_s / 60) AS minute_s,  -- The same in Unix seconds.
    engine_id,  -- Engine that served them.
    count(*) AS requests,  -- Requests that ended.
    count(*) FILTER (reason IN ('abort', 'error')) AS unserved,  -- Of these, aborted or failed.
    avg(time_s - arrival_s) FILTER (reason IN ('stop', 'length')) AS mean_ttlt_s,  -- Mean time to last token.
    quantile_cont(time_s - arrival_s, 0.5) FILTER (reason IN ('stop', 'length')) AS p50_ttlt_s,  -- Median.
    quantile_cont(time_s - arrival_s, 0.9) FILTER (reason IN ('stop', 'length')) AS p90_ttlt_s,  -- 90 % quantile.
    quantile_cont(time_s - arrival_s, 0.99) FILTER (reason IN ('stop', 'length')) AS p99_ttlt_s,  -- 99 % quantile.
    max(time_s - arrival_s) FILTER (reason IN ('stop', 'length')) AS max_ttlt_s,  -- Longest.
    avg(first_token_s - arrival_s) AS mean_ttft_s,  -- Mean time to first token.
    quantile_cont(first_token_s - arrival_s, 0.99) AS p99_ttft_s,  -- 99 % quantile of the time to first token.
    sum(output_tokens)::BIGINT AS output_tokens,  -- Tokens generated for them.
    sum(prompt_tokens)::BIGINT AS prompt_tokens,  -- Tokens of their prompts.
    sum(preemptions)::BIGINT AS preemptions,  -- How often they were preempted.
    sum(recomputed_tokens)::BIGINT AS recomputed_tokens  -- Tokens computed again because of that.
FROM completions GROUP BY ALL"""

CALIBRATION_BY_DAY = """
CREATE VIEW calibration_by_day AS  -- How predictions turned out each day; coverage counts complete answers only.
SELECT
    TRY(make_timestamp((86400 * floor(time_s / 86400) * 1e6)::BIGINT))::DATE AS day,  -- Day, UTC.
    engine_id,  -- Engine that served the requests.
    count(*) AS outcomes,  -- Predictions that turned out.
    count(*) FILTER (censored) AS censored,  -- Of these, known only in part.
    avg(within_50::INTEGER) FILTER (NOT censored) AS coverage_50,  -- Share inside the central 50 % interval.
    avg(within_90::INTEGER) FILTER (NOT censored) AS coverage_90,  -- Share inside the central 90 % interval.
    avg(pit) FILTER (NOT censored) AS mean_pit,  -- 0.5 when calibrated; more: answers are longer than predicted.
    avg(crps_tokens) AS crps_tokens,  -- Mean continuous ranked probability score.
    avg(log_score) AS log_score  -- Mean log score.
FROM outcomes GROUP BY ALL"""

VIEWS = (REQUESTS, LATENCY_BY_MINUTE, CALIBRATION_BY_DAY)
"""In the order in which they can be created."""

_VIEW_LINE = re.compile(r"CREATE VIEW (?P<view>\w+) AS  -- (?P<comment>.+)")
_COLUMN_LINE = re.compile(r"^ .*?(?P<column>\w+),?  -- (?P<comment>.+)$", re.MULTILINE)


def statements(create: str) -> list[str]:
    r"""A view's ``CREATE`` and the ``COMMENT ON`` of the view and of each column.

    >>> statements("CREATE VIEW v AS  -- Things.\nSELECT\n    1 AS a  -- One.\n")[1:]
    ["COMMENT ON VIEW v IS 'Things.'", "COMMENT ON COLUMN v.a IS 'One.'"]
    """
    head = _VIEW_LINE.search(create)
    assert head is not None, "a view's text starts with CREATE VIEW name AS  -- comment"
    view = head["view"]
    return [
        create,
        f"COMMENT ON VIEW {view} IS {quoted(head['comment'])}",
        *(
            f"COMMENT ON COLUMN {view}.{line['column']} IS {quoted(line['comment'])}"
            for line in _COLUMN_LINE.finditer(create, head.end())
        ),
    ]
