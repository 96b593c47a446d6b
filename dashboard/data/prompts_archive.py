"""Prompt clusters of the history: size, length, drift, samples, experts; failures are returned as values."""

from __future__ import annotations

import array
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from dashboard.data.archive import ArchiveTrouble, read, records
from store.reading.scope import Scope, bounds

CLUSTERS_SHOWN = 40
SAMPLES = 12
LATEST_PREDICTIONS = 3000
"""Number of latest predictions over which experts' weights are averaged."""
LATEST_OUTCOMES = 20_000
"""Number of latest answers by which clusters are described."""
TOKENS_SHOWN = 24
POINTS, ANSWERS_PER_POINT = 60, 8
"""Points in time at most, and answers on average behind each at least."""


@dataclass(frozen=True)
class Cluster:
    """One group of similar prompts."""

    model: str
    cluster: int
    answers: int
    censored: int
    mean_tokens: float
    quantiles: list[float]
    """10, 25, 50, 75, 90 and 99% of the lengths."""
    coverage_90: float | None
    crps_tokens: float
    drifts: int
    last_drift: str | None
    prompt_tokens: float | None = None
    """Median length of its latest prompts."""
    tenant: str | None = None
    """The tenant with most of its latest requests."""
    tenant_share: float | None = None


@dataclass(frozen=True)
class Likeness:
    """What the latest requests of a cluster were like."""

    model: str
    cluster: int
    prompt_tokens: float | None
    """Median length of the prompts."""
    tenant: str | None
    """The tenant with most of them."""
    tenant_share: float | None
    output_tokens: float
    """Median length of the answers."""


@dataclass(frozen=True)
class Prompts:
    """All clusters of the scope, the largest first."""

    newest_s: float | None
    """When the last request ended, in the range or before it; None when none did."""
    ended: int = 0
    """Requests that ended in the range."""
    since_s: float = 0.0
    until_s: float = 0.0
    clusters: tuple[Cluster, ...] = ()
    weights: tuple[tuple[str, int, str, float], ...] = ()
    """Model, cluster, expert, mean weight."""


@dataclass(frozen=True)
class ClusterDetail:
    """One cluster in detail."""

    lengths: tuple[tuple[float, int], ...]
    """Lower edge of each band of lengths, and answers in it."""
    over_time: tuple[tuple[float, float, float, float], ...]
    """Time, and 25, 50 and 75% of the lengths of answers about then."""
    drifts: tuple[float, ...]
    changes: tuple[tuple[float, str], ...]
    """When the cluster was created, split, merged or removed, and what happened."""
    samples: tuple[dict[str, Any], ...]


def read_prompts(path: Path, scope: Scope) -> Prompts | ArchiveTrouble:
    """The clusters of the scope."""
    return read(path, partial(_clusters, scope=scope))


def read_likenesses(path: Path, scope: Scope) -> tuple[Likeness, ...] | ArchiveTrouble:
    """What the clusters of the scope are like."""
    return read(path, partial(_likenesses, scope=scope))


def read_cluster(path: Path, scope: Scope, model: str, cluster: int) -> ClusterDetail | ArchiveTrouble:
    """One cluster of the scope in detail."""
    return read(path, partial(_detail, scope=scope, model=model, cluster=cluster))


def _clusters(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> Prompts:
    found = bounds(connection, scope)
    if found is None:
        return Prompts(None)
    since_s, newest_s = found.since_s, found.newest_s
    rows = connection.execute(_CLUSTERS, {"since_s": since_s, "limit": CLUSTERS_SHOWN}).fetchall()
    weights = connection.execute(_WEIGHTS, {"since_s": since_s, "limit": LATEST_PREDICTIONS}).fetchall()
    likes = {
        (one.model, one.cluster): (one.prompt_tokens, one.tenant, one.tenant_share)
        for one in _like(connection, since_s)
    }
    clusters = tuple(Cluster(*row, *likes.get(tuple(row[:2]), ())) for row in rows)
    (ended,) = connection.execute(_ENDED, {"since_s": since_s}).fetchall()[0]
    return Prompts(newest_s, ended, since_s, found.until_s, clusters, tuple(weights))


def _likenesses(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> tuple[Likeness, ...]:
    found = bounds(connection, scope)
    return () if found is None else _like(connection, found.since_s)


def _like(connection: duckdb.DuckDBPyConnection, since_s: float) -> tuple[Likeness, ...]:
    rows = connection.execute(_LIKE, {"since_s": since_s, "limit": LATEST_OUTCOMES}).fetchall()
    return tuple(Likeness(*row) for row in rows)


def _detail(connection: duckdb.DuckDBPyConnection, *, scope: Scope, model: str, cluster: int) -> ClusterDetail:
    found = bounds(connection, scope)
    if found is None:
        return ClusterDetail((), (), (), (), ())
    since_s = found.since_s
    which = {"since_s": since_s, "model": model, "cluster": cluster}
    lengths = connection.execute(_LENGTHS, which).fetchall()
    points = min(POINTS, max(1, sum(answers for _, answers in lengths) // ANSWERS_PER_POINT))
    width_s = max(1.0, found.span_s / points)
    samples = records(connection.execute(_SAMPLES, which | {"limit": SAMPLES}))
    return ClusterDetail(
        lengths=tuple(lengths),
        over_time=tuple(connection.execute(_OVER_TIME, which | {"width_s": width_s}).fetchall()),
        drifts=tuple(time_s for (time_s,) in connection.execute(_DRIFTS, which).fetchall()),
        changes=tuple(connection.execute(_CHANGES, which).fetchall()),
        samples=tuple(_sample(row) for row in samples),
    )


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    token_ids = array.array("I", row.pop("token_ids") or b"")
    row["Truncated"] = "yes" if row["Truncated"] else None
    row["Prompt (token ids)"] = _shortened(token_ids) if token_ids else None
    return row


def _shortened(token_ids: array.array[int]) -> str:
    head = " ".join(str(token) for token in token_ids[:TOKENS_SHOWN])
    return f"{head} …" if len(token_ids) > TOKENS_SHOWN else head


_ENDED = "SELECT count(*) FROM completions SEMI JOIN temp.chosen USING (session_id) WHERE time_s >= $since_s"
_SERVED = "served AS (SELECT session_id, any_value(model) AS model FROM engines SEMI JOIN temp.chosen USING (session_id) GROUP BY ALL)"
_CLUSTERS = f"""
WITH {_SERVED},
drifted AS (
    SELECT model, cluster, count(*) AS drifts,
        arg_max(printf('%.0f to %.0f tokens', before_mean_tokens, after_mean_tokens), time_s) AS last_drift
    FROM drift_events WHERE time_s >= $since_s GROUP BY ALL
),
answered AS (
    SELECT
        model, cluster, count(*) AS answers, count(*) FILTER (censored) AS censored, avg(output_tokens) AS mean_tokens,
        quantile_cont(output_tokens, [0.1, 0.25, 0.5, 0.75, 0.9, 0.99]) AS quantiles,
        avg(within_90::INT) FILTER (NOT censored) AS coverage_90, avg(crps_tokens) AS crps_tokens
    FROM outcomes JOIN served USING (session_id)
    WHERE time_s >= $since_s AND cluster IS NOT NULL GROUP BY model, cluster
)
SELECT answered.*, coalesce(drifts, 0), last_drift
FROM answered LEFT JOIN drifted USING (model, cluster)
ORDER BY answers DESC, model, cluster LIMIT $limit
"""
_LIKE = f"""
WITH {_SERVED},
lately AS (
    SELECT session_id, request_id, cluster, output_tokens FROM outcomes SEMI JOIN temp.chosen USING (session_id)
    WHERE time_s >= $since_s AND cluster IS NOT NULL ORDER BY time_s DESC LIMIT $limit
),
asked AS (
    SELECT
        session_id, request_id, any_value(prompt_tokens) AS prompt_tokens,
        coalesce(any_value(tenant), 'no tenant') AS tenant
    FROM arrivals SEMI JOIN lately USING (session_id, request_id) GROUP BY ALL
),
named AS (
    SELECT model, cluster, tenant, count(*) AS requests
    FROM lately JOIN asked USING (session_id, request_id) JOIN served USING (session_id) GROUP BY ALL
),
sized AS (
    SELECT model, cluster, median(prompt_tokens) AS prompt_tokens, median(output_tokens) AS output_tokens
    FROM lately JOIN asked USING (session_id, request_id) JOIN served USING (session_id) GROUP BY ALL
)
SELECT
    model, cluster, any_value(prompt_tokens), arg_max(tenant, requests), max(requests) / sum(requests),
    any_value(output_tokens)
FROM named JOIN sized USING (model, cluster) GROUP BY model, cluster
"""
"""What the prompts of each cluster are like."""
_WEIGHTS = f"""
WITH {_SERVED},
lately AS (
    SELECT session_id, cluster, experts FROM predictions SEMI JOIN temp.chosen USING (session_id)
    WHERE time_s >= $since_s ORDER BY time_s DESC LIMIT $limit
),
weights AS (SELECT session_id, cluster, unnest(map_entries(experts)) AS expert FROM lately WHERE cluster IS NOT NULL)
SELECT model, cluster, expert.key, avg(expert.value) FROM weights JOIN served USING (session_id) GROUP BY ALL ORDER BY ALL
"""
_MINE = "WHERE time_s >= $since_s AND cluster = $cluster AND session_id IN (SELECT session_id FROM served WHERE model = $model)"
_LENGTHS = f"""
WITH {_SERVED}
SELECT 2 ** (floor(2 * log2(greatest(output_tokens, 1))) / 2) AS tokens, count(*)
FROM outcomes {_MINE} GROUP BY tokens ORDER BY tokens
"""
_OVER_TIME = f"""
WITH {_SERVED}
SELECT
    $width_s * floor(time_s / $width_s) AS start_s, quantile_cont(output_tokens, 0.25),
    quantile_cont(output_tokens, 0.5), quantile_cont(output_tokens, 0.75)
FROM outcomes {_MINE} GROUP BY start_s ORDER BY start_s
"""
_DRIFTS = (
    "SELECT time_s FROM drift_events WHERE time_s >= $since_s AND model = $model AND cluster = $cluster ORDER BY time_s"
)
_CHANGES = """
SELECT time_s, CASE
    WHEN cluster <> $cluster THEN IF(kind = 'split', 'cluster ' || cluster || ' split off', 'took in cluster ' || cluster)
    WHEN kind = 'split' THEN 'split from cluster ' || other_cluster
    WHEN kind = 'merged' THEN 'merged into cluster ' || other_cluster
    ELSE kind END
FROM cluster_changes WHERE time_s >= $since_s AND $model IS NOT NULL AND $cluster IN (cluster, other_cluster)
ORDER BY time_s
"""
_SAMPLES = f"""
WITH {_SERVED},
latest AS (
    SELECT session_id, request_id, time_s, output_tokens, censored FROM outcomes {_MINE} ORDER BY time_s DESC LIMIT $limit
),
asked AS (
    SELECT session_id, request_id, any_value(prompt_tokens) AS prompt_tokens, any_value(token_ids) AS token_ids
    FROM arrivals SEMI JOIN latest USING (session_id, request_id) GROUP BY ALL
),
predicted AS (
    SELECT session_id, request_id, any_value(p50_tokens) AS p50_tokens
    FROM predictions SEMI JOIN latest USING (session_id, request_id) GROUP BY ALL
)
SELECT
    request_id AS "Request", prompt_tokens AS "Prompt tokens", p50_tokens AS "Predicted output",
    output_tokens AS "Actual output", censored AS "Truncated", token_ids
FROM latest LEFT JOIN asked USING (session_id, request_id) LEFT JOIN predicted USING (session_id, request_id)
ORDER BY latest.time_s DESC
"""
