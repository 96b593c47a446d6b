"""Predictions of the recorded history against the outcomes, over time; failures are returned as values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb

from dashboard.data.archive import ArchiveTrouble, read
from store.http_requests import FinishedPoint
from store.reading.latencies import read_finished
from store.reading.scope import Scope, bounds, bucket_s

WEIGHED = 50_000
"""Largest number of predictions over which experts' weights are averaged, spread evenly over the range."""
EVENTS_SHOWN = 200
POINTS = 5_000


@dataclass(frozen=True)
class Quality:
    """How the predictions turned out whose requests ended in one bucket."""

    time_s: float
    crps_tokens: float
    """Mean distance between prediction and outcome."""
    tokens: float
    """Mean length of those answers."""
    within_50: float | None
    """Share inside the central half of their prediction; of answers that were not cut."""
    within_90: float | None


@dataclass(frozen=True)
class Event:
    """Something that changed the predictions."""

    time_s: float
    kind: str
    """drift; born, split, merged, retired: of a cluster; distrusted, trusted: by the guard."""
    model: str | None
    """None where it concerns all."""
    cluster: int | None
    what: str


@dataclass(frozen=True)
class PredictionsPast:
    """Calibration and expert weights over time, and the changes that affect them."""

    newest_s: float | None
    """When the last request ended, in the range or before it; None when none did."""
    bucket_s: float = 60.0
    since_s: float = 0.0
    until_s: float = 0.0
    quality: tuple[Quality, ...] = ()
    weights: tuple[tuple[float, str, float], ...] = ()
    """Start of a bucket, expert, mean weight in the predictions made in it."""
    events: tuple[Event, ...] = ()
    """The newest first."""
    points: tuple[FinishedPoint, ...] = ()
    """The latest requests that ended, oldest first."""


def read_predictions(path: Path, scope: Scope) -> PredictionsPast | ArchiveTrouble:
    """Sum what the scope asks for."""
    return read(path, partial(_summed, scope=scope))


def _summed(connection: duckdb.DuckDBPyConnection, *, scope: Scope) -> PredictionsPast:
    found = bounds(connection, scope)
    if found is None:
        return PredictionsPast(None)
    since_s, width = found.since_s, _width_s(found.span_s)
    given = {"since_s": since_s, "all": not scope.narrows}
    (predictions,) = connection.execute(_PREDICTIONS, given).fetchall()[0]
    thin = {"every": max(1, predictions // WEIGHED)}
    return PredictionsPast(
        newest_s=found.newest_s,
        bucket_s=width,
        since_s=since_s,
        until_s=found.until_s,
        quality=tuple(Quality(*row) for row in connection.execute(_QUALITY, given | {"width_s": width}).fetchall()),
        weights=tuple(connection.execute(_WEIGHTS, given | thin | {"width_s": width}).fetchall()),
        events=tuple(_events(connection, scope, since_s)),
        points=read_finished(connection, scope, since_s, POINTS),
    )


def _width_s(span_s: float) -> float:
    """A bucket's width: finer than elsewhere over short ranges, so that the last minutes have a course too."""
    return 20.0 if span_s <= 900.0 else float(bucket_s(span_s))


def _events(connection: duckdb.DuckDBPyConnection, scope: Scope, since_s: float) -> list[Event]:
    query = f"{_DRIFTS} {_CLUSTERS} {_TRUST} ORDER BY time_s DESC LIMIT $limit"
    rows = connection.execute(query, {"since_s": since_s, "model": scope.model, "limit": EVENTS_SHOWN}).fetchall()
    return [Event(*row) for row in rows]


_PREDICTIONS = (
    "SELECT count(*) FROM predictions WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))"
)

_QUALITY = """
SELECT
    $width_s * floor(time_s / $width_s) AS start_s, avg(crps_tokens), avg(output_tokens),
    avg(within_50::INTEGER) FILTER (NOT censored), avg(within_90::INTEGER) FILTER (NOT censored)
FROM outcomes WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
GROUP BY start_s ORDER BY start_s
"""

_WEIGHTS = """
WITH weighed AS (
    SELECT $width_s * floor(time_s / $width_s) AS start_s, unnest(map_entries(experts)) AS expert FROM predictions
    WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen)) AND hash(request_id) % $every = 0
),
summed AS (SELECT start_s, expert.key AS name, sum(expert.value) AS weight FROM weighed GROUP BY ALL)
SELECT start_s, name, weight / sum(weight) OVER (PARTITION BY start_s) FROM summed ORDER BY ALL
"""
"""Weights of each expert, made to sum to one: a thinned bucket may miss an expert in some predictions."""

_DRIFTS = """
SELECT
    time_s, 'drift' AS kind, model, cluster,
    printf('mean %.0f to %.0f tokens, %.0f answers forgotten', before_mean_tokens, after_mean_tokens, forgotten) AS what
FROM drift_events WHERE time_s >= $since_s AND ($model IS NULL OR model = $model)
"""

_CLUSTERS = """
UNION ALL
SELECT
    time_s, kind, NULL, cluster,
    CASE kind WHEN 'split' THEN 'from cluster ' || other_cluster WHEN 'merged' THEN 'into cluster ' || other_cluster
        WHEN 'born' THEN 'like prompts far from all others' ELSE 'no prompt for long, or clusters rebuilt' END
FROM cluster_changes WHERE time_s >= $since_s
"""

_TRUST = """
UNION ALL
SELECT time_s, CASE WHEN trusted THEN 'trusted' ELSE 'distrusted' END, model, cluster, reason
FROM calibration WHERE time_s >= $since_s AND reason <> 'due' AND ($model IS NULL OR model = $model)
"""
