"""Questions that operators ask of the history, each as one statement that runs as it stands.

They stand in ``docs/sql.md``, which is made of them, and are the saved queries of the dashboard.
"""

from __future__ import annotations

from typing import NamedTuple


class UsefulQuery(NamedTuple):
    """One question and its answer in SQL."""

    group: str
    """What it is about; queries of a group stand together."""
    title: str
    """The question in words, in Markdown."""
    statement: str


USEFUL_QUERIES = (
    UsefulQuery(
        "Requests",
        "The ten longest waits of the last hour, and what was predicted of them (`sagesched explain ID` says why)",
        """\
SELECT request_id, queue_s, ttlt_s, p50_tokens, p90_tokens, output_tokens
FROM requests
WHERE arrival_s > epoch(now()) - 3600
ORDER BY queue_s DESC
LIMIT 10""",
    ),
    UsefulQuery(
        "Requests",
        "What waits or runs, the oldest first",
        """\
SELECT request_id, engine_id, epoch(now()) - arrival_s AS age_s, scheduled_s IS NOT NULL AS started, p50_tokens, priority
FROM requests
WHERE finished_s IS NULL
ORDER BY arrival_s
LIMIT 50""",
    ),
    UsefulQuery(
        "Requests",
        "The most overtaken requests: how many came later and were served first, in the last ten minutes",
        """\
WITH lately AS (
    SELECT session_id, request_id, arrival_s, scheduled_s FROM completions
    WHERE arrival_s > epoch(now()) - 600 AND scheduled_s IS NOT NULL
)
SELECT own.request_id, own.scheduled_s - own.arrival_s AS queue_s, count(*) AS overtaken_by
FROM lately AS own
JOIN lately AS other
    ON other.session_id = own.session_id AND other.arrival_s > own.arrival_s AND other.scheduled_s < own.scheduled_s
GROUP BY ALL
ORDER BY overtaken_by DESC
LIMIT 20""",
    ),
    UsefulQuery(
        "Requests",
        "How requests ended, by the hour",
        """\
SELECT time_bucket(INTERVAL 1 HOUR, make_timestamp((time_s * 1e6)::BIGINT)) AS hour, reason, count(*) AS requests
FROM completions
GROUP BY ALL
ORDER BY hour DESC, requests DESC""",
    ),
    UsefulQuery(
        "Latency",
        "Minute by minute, the last quarter of an hour",
        """\
SELECT minute, engine_id, requests, mean_ttft_s, p50_ttlt_s, p99_ttlt_s, output_tokens
FROM latency_by_minute
WHERE minute_s > epoch(now()) - 900
ORDER BY minute""",
    ),
    UsefulQuery(
        "Latency",
        "By strict class",
        """\
SELECT
    priority, count(*) AS requests, avg(ttft_s) AS mean_ttft_s,
    quantile_cont(ttlt_s, [0.5, 0.9, 0.99]) AS ttlt_quantiles_s
FROM requests
WHERE reason IN ('stop', 'length')
GROUP BY priority
ORDER BY priority""",
    ),
    UsefulQuery(
        "Latency",
        "By tenant, with its share of all output",
        """\
SELECT
    coalesce(tenant, 'none') AS sender, count(*) AS requests, avg(ttlt_s) AS mean_ttlt_s,
    sum(output_tokens) / sum(sum(output_tokens)) OVER () AS output_share
FROM requests
WHERE finished_s IS NOT NULL
GROUP BY sender
ORDER BY output_share DESC""",
    ),
    UsefulQuery(
        "Latency",
        "Do short answers gain, and do long ones pay? Time to last token by length",
        """\
SELECT
    2 ** floor(log2(greatest(output_tokens, 1))) AS tokens_from, count(*) AS requests,
    avg(queue_s) AS mean_queue_s, avg(ttlt_s) AS mean_ttlt_s, max(ttlt_s) AS max_ttlt_s
FROM requests
WHERE reason IN ('stop', 'length')
GROUP BY tokens_from
ORDER BY tokens_from""",
    ),
    UsefulQuery(
        "Service levels",
        "Attainment of each class by day, and what is left of its error budget (1: untouched, below 0: overspent)",
        """\
SELECT
    time_bucket(INTERVAL 1 DAY, finished) AS day, service_class, count(met) AS judged, avg(met::INT) AS attainment,
    max(objective) AS objective, 1 - avg((NOT met)::INT) / (1 - max(objective)) AS budget_left
FROM service_levels
WHERE met IS NOT NULL
GROUP BY ALL
ORDER BY day DESC, service_class""",
    ),
    UsefulQuery(
        "Service levels",
        "Missed targets of the last day, and why",
        """\
SELECT
    service_class, tenant, missed_because, count(*) AS missed, count(*) FILTER (NOT ttft_met) AS ttft,
    count(*) FILTER (NOT tpot_met) AS tpot, count(*) FILTER (NOT e2e_met) AS e2e
FROM service_levels
WHERE NOT met AND finished_s > epoch(now()) - 86400
GROUP BY ALL
ORDER BY missed DESC
LIMIT 50""",
    ),
    UsefulQuery(
        "Service levels",
        "How fast each class spends its error budget: 1 spends it exactly in the period of the objective",
        """\
SELECT
    service_class,
    avg((NOT met)::INT) FILTER (finished_s > epoch(now()) - 300) / (1 - max(objective)) AS burn_rate_5m,
    avg((NOT met)::INT) / (1 - max(objective)) AS burn_rate_1h
FROM service_levels
WHERE met IS NOT NULL AND finished_s > epoch(now()) - 3600
GROUP BY service_class
ORDER BY burn_rate_1h DESC""",
    ),
    UsefulQuery(
        "Service levels",
        "The misses that were closest: requests that would have met their TTFT target half a second sooner",
        """\
SELECT request_id, service_class, tenant, ttft_s, ttft_target_s, queue_s, prefill_s, missed_because
FROM service_levels
WHERE NOT ttft_met AND ttft_s < ttft_target_s + 0.5
ORDER BY finished_s DESC
LIMIT 50""",
    ),
    UsefulQuery(
        "Service levels",
        "What each tenant used against its weight, by the hour",
        """\
SELECT hour, tenant, requests, service_s, share, fair_share, share / fair_share AS of_its_share, mean_queue_s, attainment
FROM tenants
ORDER BY hour DESC, share DESC""",
    ),
    UsefulQuery(
        "Service levels",
        "How evenly engine-seconds were shared by the hour: Jain's index, 1 where each tenant had its weight's part",
        """\
SELECT
    hour, count(*) AS tenants,
    sum(service_s / coalesce(weight, 1)) ** 2 / (count(*) * sum((service_s / coalesce(weight, 1)) ** 2)) AS jain_index
FROM tenants
WHERE service_s > 0
GROUP BY hour
ORDER BY hour DESC""",
    ),
    UsefulQuery(
        "Service levels",
        "The sessions that took longest, and what the prefix cache spared them",
        """\
SELECT session, tenant, requests, completion_s, ttlt_s, queue_s, cached_share
FROM sessions
WHERE finished = requests
ORDER BY ttlt_s DESC
LIMIT 20""",
    ),
    UsefulQuery(
        "Predictions",
        "How often the 90% interval held, by cluster",
        """\
SELECT cluster, count(*) AS answers, avg(within_90::INT) AS coverage_90
FROM outcomes
WHERE NOT censored
GROUP BY cluster
ORDER BY answers DESC""",
    ),
    UsefulQuery(
        "Predictions",
        "Day by day",
        """\
SELECT day, outcomes, coverage_50, coverage_90, mean_pit, crps_tokens FROM calibration_by_day ORDER BY day DESC""",
    ),
    UsefulQuery(
        "Predictions",
        "Where outcomes fell in their predictions; level bars mean calibrated",
        """\
SELECT floor(pit * 10) / 10 AS from_pit, count(*) AS answers, bar(count(*), 0, max(count(*)) OVER (), 30) AS share
FROM outcomes
WHERE NOT censored
GROUP BY from_pit
ORDER BY from_pit""",
    ),
    UsefulQuery(
        "Predictions",
        "The greatest surprises: answers far longer than predicted",
        """\
SELECT request_id, cluster, p50_tokens, p99_tokens, output_tokens, output_tokens / p99_tokens AS times_longer
FROM requests
WHERE output_tokens > 0 AND p99_tokens > 0
ORDER BY times_longer DESC
LIMIT 20""",
    ),
    UsefulQuery(
        "Predictions",
        "Which experts count, in the last 1,000 predictions",
        """\
WITH lately AS (SELECT experts FROM predictions ORDER BY time_s DESC LIMIT 1000),
weights AS (SELECT unnest(map_entries(experts)) AS expert FROM lately)
SELECT expert.key AS name, avg(expert.value) AS mean_weight
FROM weights
GROUP BY name
ORDER BY mean_weight DESC""",
    ),
    UsefulQuery(
        "Predictions",
        "Which length distributions drifted, and how far",
        """\
SELECT make_timestamp((time_s * 1e6)::BIGINT) AS moment, model, cluster, before_mean_tokens, after_mean_tokens, forgotten, renewed_requests
FROM drift_events
ORDER BY time_s DESC""",
    ),
    UsefulQuery(
        "Predictions",
        "Prompt clusters that were created, split, merged or removed",
        """\
SELECT make_timestamp((time_s * 1e6)::BIGINT) AS moment, kind, cluster, other_cluster
FROM cluster_changes
ORDER BY time_s DESC""",
    ),
    UsefulQuery(
        "Predictions",
        "What a prediction costs",
        """\
SELECT count(*) AS predictions, avg(predict_s) AS mean_s, quantile_cont(predict_s, 0.99) AS p99_s FROM predictions""",
    ),
    UsefulQuery(
        "Memory, gate and preemption",
        "Recomputed tokens, by hour",
        """\
SELECT time_bucket(INTERVAL 1 HOUR, make_timestamp((time_s * 1e6)::BIGINT)) AS hour, sum(lost_tokens) AS tokens, count(*) AS preemptions
FROM preemptions
GROUP BY hour
ORDER BY hour""",
    ),
    UsefulQuery(
        "Memory, gate and preemption",
        "KV memory in use and reserved for growth, by minute",
        """\
SELECT
    time_bucket(INTERVAL 1 MINUTE, make_timestamp((time_s * 1e6)::BIGINT)) AS minute, engine_id,
    avg(kv_blocks_used / kv_blocks) AS mean_used, max(kv_blocks_used / kv_blocks) AS max_used,
    avg(reserved_blocks / kv_blocks) AS mean_reserved
FROM snapshots
WHERE kv_blocks > 0
GROUP BY ALL
ORDER BY minute DESC, engine_id""",
    ),
    UsefulQuery(
        "Memory, gate and preemption",
        "How often the gate held the queue while requests waited",
        """\
SELECT engine_id, count(*) AS snapshots_with_a_queue, avg((running >= admission_limit)::INT) AS held_by_the_gate
FROM snapshots
WHERE waiting > 0 AND admission_limit IS NOT NULL
GROUP BY engine_id""",
    ),
    UsefulQuery(
        "Memory, gate and preemption",
        "How long a step takes by the size of the batch, and how much of it the plugin takes",
        """\
SELECT
    8 * floor(running / 8) AS running_from, sum(steps) AS steps, sum(step_s) / sum(steps) AS mean_step_s,
    sum(hook_s) / sum(step_s) AS share_of_plugin
FROM snapshots
WHERE steps > 0
GROUP BY running_from
ORDER BY running_from""",
    ),
    UsefulQuery(
        "Decisions and modes",
        "Every change of mode, and why",
        """\
SELECT make_timestamp((time_s * 1e6)::BIGINT) AS moment, mode, reason FROM settings_history ORDER BY time_s""",
    ),
    UsefulQuery(
        "Decisions and modes",
        "When engines fell back to their own order, and why",
        """\
SELECT engine_id, fallback, make_timestamp((min(time_s) * 1e6)::BIGINT) AS first_seen, make_timestamp((max(time_s) * 1e6)::BIGINT) AS last_seen, count(*) AS snapshots
FROM snapshots
WHERE fallback IS NOT NULL
GROUP BY engine_id, fallback
ORDER BY first_seen DESC""",
    ),
    UsefulQuery(
        "Decisions and modes",
        "How often an index table was published for a request, and for which reason",
        """\
SELECT policy, reason, count(*) AS tables, avg(len(attained_tokens)) AS mean_entries, avg(cost_s) AS mean_cost_s
FROM decisions
GROUP BY policy, reason
ORDER BY tables DESC""",
    ),
)
"""In the order in which they are shown."""
