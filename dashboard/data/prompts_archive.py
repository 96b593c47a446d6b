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


@dataclass(frozen=True)
class Prompts:
    """All clusters of the scope, the largest first."""

    newest_s: float | None
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


def read_cluster(path: Path, scope: Scope, model: str, cluster: int) -> ClusterDetail | ArchiveTrouble:
    """One cluster of the scope in detail."""
    return read(path, partial(_detail, scope=scope, model=model, cluster=cluster))


def _clusters(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> Prompts:
    found = bounds(connection, scope)
    if found is None:
        return Prompts(None)
    since_s, newest_s = found
    rows = connection.execute(_CLUSTERS, {"since_s": since_s, "limit": CLUSTERS_SHOWN}).fetchall()
    weights = connection.execute(_WEIGHTS, {"since_s": since_s, "limit": LATEST_PREDICTIONS}).fetchall()
    clusters = tuple(Cluster(*row) for row in rows)
    return Prompts(newest_s, clusters, tuple(weights))


def _detail(connection: duckdb.DuckDBPyConnection, *, scope: Scope, model: str, cluster: int) -> ClusterDetail:
    found = bounds(connection, scope)
    if found is None:
        return ClusterDetail((), (), (), (), ())
    since_s, newest_s = found
    which = {"since_s": since_s, "model": model, "cluster": cluster}
    lengths = connection.execute(_LENGTHS, which).fetchall()
    points = min(POINTS, max(1, sum(answers for _, answers in lengths) // ANSWERS_PER_POINT))
    width_s = max(1.0, (newest_s - since_s) / points)
    samples = records(connection.execute(_SAMPLES, which | {"limit": SAMPLES}))
    return ClusterDetail(
        lengths=tuple(lengths),
        over_time=tuple(connection.execute(_OVER_TIME, which | {"width_s": width_s}).fetchall()),
        drifts=tuple(time_s for (time_s,) in connection.execute(_DRIFTS, which).fetchall()),
        changes=tuple(connection.execute(_CHANGES, which).fetchall()),
        samples=tuple(_sample(row) for row in samples),
    )


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    features = array.array("f", row.pop("features") or b"")
    token_ids = array.array("I", row.pop("token_ids") or b"")
    row["Features"] = [round(value, 3) for value in features]
    row["Prompt (token ids)"] = _shortened(token_ids) if token_ids else None
    return row


def _shortened(token_ids: array.array[int]) -> str:
    head = " ".join(str(token) for token in token_ids[:TOKENS_SHOWN])
    return f"{head} …" if len(token_ids) > TOKENS_SHOWN else head


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
    SELECT session_id, request_id, any_value(p50_tokens) AS p50_tokens, any_value(features) AS features
    FROM predictions SEMI JOIN latest USING (session_id, request_id) GROUP BY ALL
)
SELECT
    request_id AS "Request", prompt_tokens AS "Prompt", p50_tokens AS "Predicted", output_tokens AS "Came",
    censored AS "Cut", features, token_ids
FROM latest LEFT JOIN asked USING (session_id, request_id) LEFT JOIN predicted USING (session_id, request_id)
ORDER BY latest.time_s DESC
"""
