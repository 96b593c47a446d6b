"""Service levels of the requests that ended in a span of time, over any connection with the history's tables."""

from __future__ import annotations

from typing import Any

import duckdb
import msgspec

from store.bounds import bounded_name
from store.history.views import judged_requests
from store.http_service import (
    AttainmentPoint,
    ClassAttainment,
    Misses,
    ServiceView,
    TargetAttainment,
    TenantService,
)
from store.reading.latencies import Window
from store.reading.scope import Scope, bounds, bucket_s, choose
from store.service_levels import TARGETS

TABLES = ("arrivals", "completions", "engines", "outcomes", "promises")
"""Tables that these queries read."""
JUDGED = 200_000
"""Number of latest requests that are judged; judging all of a long history would take seconds."""
TENANTS_SHOWN = 20
CLASSES_SHOWN = 32
CURVES = 6
"""Number of largest classes and of tenants whose attainment is given over time."""
MISSES_SHOWN = 60
RECENT = 12
"""The last part of the span is its twelfth, as the short window of a burn rate is of the long one."""


def read_service(connection: duckdb.DuckDBPyConnection, scope: Scope, window: Window | None = None) -> ServiceView:
    """Attainment, misses and use of the requests that ended in the window; None: in the scope's span."""
    newest_s = None
    if window is None:
        found = bounds(connection, scope)
        if found is None:
            return ServiceView(newest_s=None, bucket_s=60.0)
        newest_s = found.newest_s
        window = Window(found.since_s, found.until_s, bucket_s(found.span_s))
    else:
        choose(connection, scope)
    given = {"since_s": window.since_s, "all": not scope.narrows, "limit": JUDGED}
    ended_s, arrival_s, requests = connection.execute(_LATEST, given).fetchall()[0]
    if not requests:
        return ServiceView(newest_s=newest_s, bucket_s=window.width_s)
    recent_s = (window.until_s - window.since_s) / RECENT
    about = {"arrival_s": arrival_s, "width_s": window.width_s, "recent_s": window.until_s - recent_s}
    connection.execute(_JUDGED, given | about | {"since_s": ended_s})
    active, jain_index = connection.execute(_FAIRNESS).fetchall()[0]
    return ServiceView(
        newest_s=window.until_s if newest_s is None else newest_s,
        bucket_s=window.width_s,
        since_s=window.since_s,
        until_s=window.until_s,
        recent_s=recent_s,
        requests=requests,
        capped=requests >= JUDGED,
        classes=_classes(connection),
        tenants=tuple(
            TenantService(name=bounded_name(name), **figures)
            for name, figures in _named(connection, _TENANTS, limit=TENANTS_SHOWN)
        ),
        tenants_active=active,
        jain_index=jain_index,
        points=tuple(
            AttainmentPoint(name=bounded_name(name), **figures)
            for name, figures in _named(connection, _POINTS, width_s=window.width_s, limit=CURVES)
        ),
        misses=tuple(msgspec.convert(_rows(connection, _MISSES, limit=MISSES_SHOWN), list[Misses])),
    )


def _classes(connection: duckdb.DuckDBPyConnection) -> tuple[ClassAttainment, ...]:
    targets: dict[str, list[TargetAttainment]] = {}
    for target in TARGETS:
        for name, figures in _named(connection, _TARGET.format(target=target)):
            targets.setdefault(name, []).append(TargetAttainment(target=target, **figures))
    return tuple(
        ClassAttainment(name=name, targets=tuple(targets.get(name, ())), **figures)
        for name, figures in _named(connection, _CLASSES, limit=CLASSES_SHOWN)
    )


def _named(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a query, each by its name."""
    return [(str(row.pop("name")), row) for row in _rows(connection, query, **parameters)]


def _rows(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(query, params=parameters or None).to_arrow_table().to_pylist()
    return rows


_LATEST = """
SELECT min(time_s), min(arrival_s), count(*) FROM (
    SELECT time_s, arrival_s FROM completions
    WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
    ORDER BY time_s DESC LIMIT $limit
)
"""

_SELECTED = judged_requests(
    completions="""(
        SELECT * FROM completions WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
        ORDER BY time_s DESC LIMIT $limit
    )""",
    arrivals="(SELECT * FROM arrivals WHERE arrival_s >= $arrival_s)",
    promises="(SELECT * FROM promises WHERE time_s >= $arrival_s)",
    outcomes="(SELECT * FROM outcomes WHERE time_s >= $since_s)",
)

_JUDGED = f"""
CREATE OR REPLACE TEMP TABLE judged AS
SELECT
    floor(finished_s / $width_s)::BIGINT AS bucket, finished_s >= $recent_s AS recent, service_class, tenant, weight,
    objective, ttft_target_s, tpot_target_s, e2e_target_s, ttft_met, tpot_met, e2e_met, met, missed_because, service_s,
    queue_s, CASE WHEN reason IN ('stop', 'length') THEN ttlt_s END AS ttlt_s
FROM ({_SELECTED})
"""

_CLASSES = """
SELECT
    service_class AS name, max(objective) AS objective, count(*) AS requests, count(met) AS judged,
    count(*) FILTER (met) AS met, count(met) FILTER (recent) AS recent_judged, count(*) FILTER (recent AND met) AS recent_met
FROM temp.judged GROUP BY name ORDER BY requests DESC, name LIMIT $limit
"""

_TARGET = """
SELECT
    service_class AS name, min({target}_target_s) AS shortest_s, max({target}_target_s) AS longest_s,
    count({target}_met) AS judged, count(*) FILTER ({target}_met) AS met
FROM temp.judged WHERE {target}_target_s IS NOT NULL GROUP BY name
"""

_TENANTS = """
SELECT
    tenant AS name, max(weight) AS weight, count(*) AS requests, count(met) AS judged, count(*) FILTER (met) AS met,
    sum(service_s) AS service_s, sum(service_s) / nullif(sum(sum(service_s)) OVER (), 0.0) AS share,
    coalesce(max(weight), 1.0) / sum(coalesce(max(weight), 1.0)) OVER () AS fair_share, avg(queue_s) AS mean_queue_s,
    avg(ttlt_s) AS mean_ttlt_s
FROM temp.judged GROUP BY name ORDER BY service_s DESC NULLS LAST, requests DESC, name LIMIT $limit
"""

_FAIRNESS = """
SELECT count(*), CASE WHEN count(used) > 1 THEN sum(used) ** 2 / nullif(count(used) * sum(used ** 2), 0.0) END
FROM (SELECT sum(service_s) / coalesce(max(weight), 1.0) AS used FROM temp.judged GROUP BY tenant)
"""

_POINTS = """
WITH named AS (
    SELECT 'class' AS grouped, service_class AS name, bucket, met FROM temp.judged WHERE met IS NOT NULL
    UNION ALL
    SELECT 'tenant', tenant, bucket, met FROM temp.judged WHERE met IS NOT NULL
),
shown AS (
    SELECT grouped, name FROM named GROUP BY grouped, name
    QUALIFY row_number() OVER (PARTITION BY grouped ORDER BY count(*) DESC, name) <= $limit
)
SELECT grouped AS "by", name, bucket * $width_s AS time_s, count(*) AS judged, count(*) FILTER (met) AS met
FROM named SEMI JOIN shown USING (grouped, name) GROUP BY ALL ORDER BY grouped, name, time_s
"""

_MISSES = """
SELECT
    service_class, tenant, missed_because AS cause, count(*) AS requests, count(*) FILTER (NOT ttft_met) AS ttft,
    count(*) FILTER (NOT tpot_met) AS tpot, count(*) FILTER (NOT e2e_met) AS e2e
FROM temp.judged WHERE NOT met GROUP BY ALL ORDER BY requests DESC, service_class, tenant, cause LIMIT $limit
"""
