"""Views of the catalog that join or sum what the tables hold, as SQL text; stable names for dashboards and people.

Each column of a view has its comment behind it; `statements` turns them into ``COMMENT ON``.
The tables' own views carry the comments of `store.history.tables`.
"""

from __future__ import annotations

import re

from store import service_levels
from store.history.tables import quoted

FIRST_REPORTED = """again AS (
    SELECT * FROM {arrivals} WHERE resent
    QUALIFY row_number() OVER (PARTITION BY session_id, request_id ORDER BY received_s) = 1
),
first_reported AS NOT MATERIALIZED (
    SELECT * FROM {arrivals} WHERE NOT resent
    UNION ALL
    SELECT * FROM again ANTI JOIN (
        SELECT session_id, request_id FROM {arrivals} SEMI JOIN again USING (session_id, request_id) WHERE NOT resent
    ) USING (session_id, request_id)
)"""
"""Common table expressions: arrivals that were sent again, and each arrival once, as first reported."""

REQUESTS = f"""
CREATE VIEW requests AS  -- One row per request, with all that is known of it.
WITH {FIRST_REPORTED.format(arrivals="arrivals")},
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
        c.expected_cached_tokens, c.preemptions, c.recomputed_tokens, a.temperature, a.priority, a.tenant, a.session, a.lora
    FROM completions AS c
    LEFT JOIN first_reported AS a ON a.session_id = c.session_id AND a.request_id = c.request_id
    UNION ALL
    SELECT
        a.engine_id, a.session_id, a.request_id, a.received_s, a.arrival_s, f.scheduled_s, f.time_s,
        NULL, NULL, a.prompt_tokens, NULL, a.max_tokens, f.cached_prompt_tokens,
        NULL, coalesce(p.preemptions, 0), p.lost_tokens, a.temperature, a.priority, a.tenant, a.session, a.lora
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
    l.session,  -- Conversation or agent's program that it belongs to, if its client says.
    l.lora,  -- LoRA adapter, if any.
    p.cluster,  -- Prompt cluster of its first prediction.
    p.mean_tokens,  -- Expected output length of its first prediction.
    p.p10_tokens,  -- 10% quantile of its first prediction.
    p.p25_tokens,  -- 25% quantile.
    p.p50_tokens,  -- Median.
    p.p75_tokens,  -- 75% quantile.
    p.p90_tokens,  -- 90% quantile.
    p.p95_tokens,  -- 95% quantile.
    p.p99_tokens,  -- 99% quantile.
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
    quantile_cont(time_s - arrival_s, 0.9) FILTER (reason IN ('stop', 'length')) AS p90_ttlt_s,  -- 90% quantile.
    quantile_cont(time_s - arrival_s, 0.99) FILTER (reason IN ('stop', 'length')) AS p99_ttlt_s,  -- 99% quantile.
    max(time_s - arrival_s) FILTER (reason IN ('stop', 'length')) AS max_ttlt_s,  -- Longest.
    avg(first_token_s - arrival_s) AS mean_ttft_s,  -- Mean time to first token.
    quantile_cont(first_token_s - arrival_s, 0.99) AS p99_ttft_s,  -- 99% quantile of the time to first token.
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
    avg(within_50::INTEGER) FILTER (NOT censored) AS coverage_50,  -- Share inside the central 50% interval.
    avg(within_90::INTEGER) FILTER (NOT censored) AS coverage_90,  -- Share inside the central 90% interval.
    avg(pit) FILTER (NOT censored) AS mean_pit,  -- 0.5 when calibrated; more: answers are longer than predicted.
    avg(crps_tokens) AS crps_tokens,  -- Mean continuous ranked probability score.
    avg(log_score) AS log_score  -- Mean log score.
FROM outcomes GROUP BY ALL"""


def judged_requests(
    *,
    completions: str = "completions",
    arrivals: str = "arrivals",
    promises: str = "promises",
    outcomes: str = "outcomes",
) -> str:
    """What the view `service_levels` selects, over these tables or parts of them; `store.service_levels` in SQL."""
    default, own = quoted(service_levels.NOT_CONFIGURED), quoted(service_levels.OWN_TARGETS)
    assumed, nobody = service_levels.DEFAULT_TARGETS, quoted(service_levels.NO_TENANT)
    assert assumed.e2e_s is None, "the default class has no end-to-end target"
    return f"""WITH {FIRST_REPORTED.format(arrivals=arrivals)},
promised AS NOT MATERIALIZED (
    SELECT * FROM {promises} ANTI JOIN again USING (session_id, request_id)
    UNION ALL
    SELECT * FROM {promises} SEMI JOIN again USING (session_id, request_id)
    QUALIFY row_number() OVER (PARTITION BY session_id, request_id ORDER BY received_s DESC) = 1
),
joined AS (
    SELECT
        c.engine_id, c.session_id, c.request_id, a.session, a.priority, c.arrival_s, c.time_s AS finished_s, c.reason,
        c.shed, c.prompt_tokens, c.cached_prompt_tokens, c.output_tokens, c.preemptions, c.itl_max_s, c.first_token_s,
        c.scheduled_s, p.weight, o.service_s, coalesce(p.account, a.tenant, {nobody}) AS tenant,
        coalesce(p.objective, {service_levels.DEFAULT_OBJECTIVE}) AS objective,
        p.service_class IS NULL AND coalesce(p.targets_ttft_s, p.targets_tpot_s, p.targets_e2e_s) IS NULL AS assumed,
        CASE WHEN assumed THEN {default} ELSE coalesce(p.service_class, {own}) END AS service_class,
        CASE WHEN assumed THEN {assumed.ttft_s} ELSE p.targets_ttft_s END AS ttft_target_s,
        CASE WHEN assumed THEN {assumed.tpot_s} ELSE p.targets_tpot_s END AS tpot_target_s,
        p.targets_e2e_s AS e2e_target_s
    FROM {completions} AS c
    LEFT JOIN first_reported AS a ON a.session_id = c.session_id AND a.request_id = c.request_id
    LEFT JOIN promised AS p ON p.session_id = c.session_id AND p.request_id = c.request_id
    LEFT JOIN {outcomes} AS o ON o.session_id = c.session_id AND o.request_id = c.request_id
),
timed AS (
    SELECT
        *, shed IS NOT NULL OR reason <> 'abort' OR first_token_s IS NOT NULL AS counts,
        shed IS NOT NULL OR reason = 'error' AS lost,
        coalesce(first_token_s, finished_s) - arrival_s AS waited_s,
        coalesce(scheduled_s - arrival_s, waited_s) AS queued_s,
        coalesce(finished_s - first_token_s, 0.0) AS decoded_s,
        CASE WHEN output_tokens > 1 THEN (finished_s - first_token_s) / (output_tokens - 1) END AS tpot_s,
        CASE WHEN preemptions > 0 THEN coalesce(itl_max_s, decoded_s) ELSE 0.0 END AS stall_s,
        finished_s - arrival_s - queued_s AS served_s
    FROM joined
),
judged AS (
    SELECT
        *,
        CASE WHEN counts AND ttft_target_s IS NOT NULL THEN NOT lost AND waited_s <= ttft_target_s END AS ttft_met,
        CASE WHEN counts AND tpot_target_s IS NOT NULL THEN NOT lost AND tpot_s <= tpot_target_s END AS tpot_met,
        CASE WHEN counts AND e2e_target_s IS NOT NULL THEN NOT lost AND finished_s - arrival_s <= e2e_target_s END AS e2e_met,
        CASE WHEN counts AND coalesce(ttft_target_s, tpot_target_s, e2e_target_s) IS NOT NULL
            THEN coalesce(ttft_met, true) AND coalesce(tpot_met, true) AND coalesce(e2e_met, true) END AS met
    FROM timed
)
SELECT
    engine_id,  -- Engine that served it.
    session_id,  -- Session of that engine.
    request_id,  -- The engine's name of the request, unique within the session.
    service_class,  -- Its service class; 'default (not configured)' without class and targets, 'own targets' with its own alone.
    tenant,  -- The account that it was charged to; otherwise its tenant; 'none' where it names none.
    weight,  -- Weight of that account; NULL where no shares are kept.
    priority,  -- Its own strict class; NULL if its arrival was lost.
    session,  -- Conversation or agent's program that it belongs to, if its client says.
    objective,  -- Share of the requests of its class that is to meet all targets.
    ttft_target_s,  -- Longest time to first token that it was to have; NULL without such a target.
    tpot_target_s,  -- Longest mean time per output token after the first.
    e2e_target_s,  -- Longest time from arrival to the last token.
    arrival_s,  -- When it entered the engine, Unix seconds.
    finished_s,  -- When it ended, Unix seconds.
    TRY(make_timestamp((finished_s * 1e6)::BIGINT)) AS finished,  -- The same as a timestamp, UTC.
    reason,  -- stop, length, abort or error.
    shed,  -- Why it was ended before it was served, as its client had asked for; NULL if it was not.
    first_token_s - arrival_s AS ttft_s,  -- Time to first token; NULL if there was none.
    tpot_s,  -- Mean time per output token after the first; NULL with fewer than two.
    finished_s - arrival_s AS ttlt_s,  -- Time to last token: arrival to completion.
    scheduled_s - arrival_s AS queue_s,  -- Time in the queue before its first step.
    first_token_s - scheduled_s AS prefill_s,  -- Time from its first step to its first token.
    finished_s - first_token_s AS decode_s,  -- Time from its first to its last token.
    itl_max_s,  -- Longest time between two of its output tokens.
    preemptions,  -- How often it was preempted.
    prompt_tokens,  -- Length of the prompt.
    cached_prompt_tokens,  -- Prompt tokens found in the prefix cache.
    output_tokens,  -- Tokens generated.
    service_s,  -- What it used, in engine-seconds at the engine's prices when it ended; NULL if nothing was learned from it.
    ttft_met,  -- Whether it met its TTFT target; NULL without one, or if its client left before the first token.
    tpot_met,  -- Whether it met its TPOT target; NULL likewise, and with fewer than two output tokens.
    e2e_met,  -- Whether it met its end-to-end target; NULL likewise.
    met,  -- Whether it met all that it had; false for one that was shed or failed; NULL without any, or if its client left.
    CASE
        WHEN met IS NOT false THEN NULL
        WHEN shed IS NOT NULL THEN 'shed'
        WHEN lost THEN 'failed'
        WHEN ttft_met IS false THEN CASE WHEN waited_s - queued_s > ttft_target_s THEN 'prefill' ELSE 'queued' END
        WHEN tpot_met IS false THEN CASE
            WHEN preemptions > 0 AND decoded_s - stall_s <= tpot_target_s * (output_tokens - 1) THEN 'preempted' ELSE 'paced' END
        WHEN served_s <= e2e_target_s THEN 'queued'
        WHEN served_s - stall_s > e2e_target_s THEN 'too_long'
        ELSE 'preempted'
    END AS missed_because  -- Cause of the first target that it missed: queued, prefill, paced, preempted, too_long, shed or failed.
FROM judged"""


SERVICE_LEVELS = f"""
CREATE VIEW service_levels AS  -- Each finished request: what it was promised, what it got, and why it missed a target.
{judged_requests()}"""

TENANTS = """
CREATE VIEW tenants AS  -- What each tenant used and got in each hour, by the requests that ended in it.
WITH summed AS (
    SELECT
        3600 * floor(finished_s / 3600) AS hour_s, tenant, max(weight) AS weight, count(*) AS requests,
        count(met) AS judged, avg(met::INTEGER) AS attainment, avg(queue_s) AS mean_queue_s,
        quantile_cont(queue_s, 0.99) AS p99_queue_s, avg(ttft_s) AS mean_ttft_s,
        avg(ttlt_s) FILTER (reason IN ('stop', 'length')) AS mean_ttlt_s, sum(prompt_tokens)::BIGINT AS prompt_tokens,
        sum(output_tokens)::BIGINT AS output_tokens, sum(service_s) AS service_s
    FROM service_levels GROUP BY ALL
)
SELECT
    TRY(make_timestamp((hour_s * 1e6)::BIGINT)) AS hour,  -- Start of the hour, UTC.
    hour_s,  -- The same in Unix seconds.
    tenant,  -- The account that they were charged to; otherwise their tenant; 'none' for requests that name none.
    weight,  -- Weight of that account; NULL where no shares are kept.
    requests,  -- Requests that ended.
    judged,  -- Of these, how many had targets and count.
    attainment,  -- Share of those that met all their targets.
    mean_queue_s,  -- Mean time in the queue.
    p99_queue_s,  -- 99% quantile.
    mean_ttft_s,  -- Mean time to first token.
    mean_ttlt_s,  -- Mean time to last token of those that ran to their end.
    prompt_tokens,  -- Tokens of their prompts.
    output_tokens,  -- Tokens generated for them.
    service_s,  -- Engine-seconds that they used, as far as known.
    service_s / nullif(sum(service_s) OVER (PARTITION BY hour_s), 0.0) AS share,  -- Its part of the engine-seconds of all tenants.
    coalesce(weight, 1.0) / sum(coalesce(weight, 1.0)) OVER (PARTITION BY hour_s) AS fair_share  -- Its weight among those of the tenants with requests.
FROM summed"""

SESSIONS = f"""
CREATE VIEW sessions AS  -- Conversations and agents' programs, as clients name them, with the requests of each.
WITH {FIRST_REPORTED.format(arrivals="arrivals")}
SELECT
    a.session,  -- Name that its requests give.
    coalesce(a.tenant, {quoted(service_levels.NO_TENANT)}) AS tenant,  -- Their tenant; 'none' where they name none.
    count(*) AS requests,  -- Requests that arrived.
    count(c.time_s) AS finished,  -- Of these, requests that ended.
    count(DISTINCT a.engine_id) AS engines,  -- Engines that they went to.
    min(a.arrival_s) AS first_arrival_s,  -- When the first arrived, Unix seconds.
    max(c.time_s) AS last_finished_s,  -- When the last ended, Unix seconds; NULL if none did.
    max(c.time_s) - min(a.arrival_s) AS completion_s,  -- Time from the first arrival to the last end, with pauses between requests.
    sum(c.time_s - c.arrival_s) AS ttlt_s,  -- Sum of the requests' times to last token.
    sum(c.scheduled_s - c.arrival_s) AS queue_s,  -- Sum of their times in the queue.
    sum(c.prompt_tokens)::BIGINT AS prompt_tokens,  -- Tokens of the prompts of those that ended.
    sum(c.cached_prompt_tokens)::BIGINT AS cached_prompt_tokens,  -- Of these, found in the prefix cache.
    sum(c.cached_prompt_tokens) / nullif(sum(c.prompt_tokens), 0) AS cached_share,  -- The same as a share.
    sum(c.output_tokens)::BIGINT AS output_tokens  -- Tokens generated.
FROM first_reported AS a
LEFT JOIN completions AS c ON c.session_id = a.session_id AND c.request_id = a.request_id
WHERE a.session IS NOT NULL
GROUP BY a.session, a.tenant"""

VIEWS = (REQUESTS, LATENCY_BY_MINUTE, CALIBRATION_BY_DAY, SERVICE_LEVELS, TENANTS, SESSIONS)
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
