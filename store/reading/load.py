"""Load and throughput of engines over time, summed from their snapshots in bins."""

from __future__ import annotations

import duckdb
import msgspec

from store.http_requests import LoadPoint, LoadView
from store.reading.scope import TRUSTED, Scope, choose

TABLES = ("engines", "snapshots")
"""Tables that these queries read."""
MAX_BINS = 2000
"""Bound on the bins, so that a clock that jumped cannot produce endless empty ones."""
CARRIED_S = 3.0
"""Time after an engine's last snapshot for which its levels are assumed to hold."""
CARRIED_IDLE_S = 12.0
"""The same for an idle engine, of whose equal snapshots one in ten seconds is recorded."""


COMMITTED_S = 1.5
"""Time after which a snapshot is in the history: a bin that ends later is not whole yet."""


def read_load(
    connection: duckdb.DuckDBPyConnection, scope: Scope, since_s: float, bin_s: float, now_s: float = 0.0
) -> LoadView:
    """Sum the snapshots since ``since_s``: the last levels of each engine, and rates of computed tokens.

    The bins reach up to ``now_s`` also where nothing is recorded: an engine that is there and computes nothing has the
    rate 0. The first and the last bin are omitted: they are only partly covered, so their rates would be too low.
    """
    assert bin_s > 0.0, bin_s
    choose(connection, scope)
    given = {"since_s": since_s, "all": not scope.narrows}
    bins = {"bin_s": bin_s, "carried_s": CARRIED_S, "idle_s": CARRIED_IDLE_S, "bins": MAX_BINS}
    bins["until_s"] = now_s - COMMITTED_S
    points = connection.sql(_BINS, params=given | bins).to_arrow_table().to_pylist()
    steps, step_s = connection.execute(_STEPS, given).fetchall()[0]
    return LoadView(points=tuple(msgspec.convert(points, list[LoadPoint])), steps=steps, step_s=step_s)


_BINS = f"""
WITH seen AS (
    SELECT *, floor(time_s / $bin_s)::BIGINT AS bin FROM snapshots
    WHERE isfinite(time_s) AND time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
),
span AS (
    SELECT
        min(bin) + 1 AS first,
        greatest(coalesce(max(bin) FILTER ({TRUSTED}), max(bin)), floor($until_s / $bin_s)::BIGINT) - 1 AS last
    FROM seen HAVING count(*) > 0
),
bins AS (SELECT unnest(range(greatest(first, last - $bins + 1), last + 1)) AS bin FROM span),
grid AS (SELECT bin, engine_id, (bin + 1) * $bin_s AS end_s FROM bins CROSS JOIN (SELECT DISTINCT engine_id FROM seen)),
levels AS (
    SELECT
        grid.bin, sum(waiting)::DOUBLE AS waiting, sum(running)::DOUBLE AS running,
        sum(kv_blocks_used)::DOUBLE AS used_blocks, sum(reserved_blocks)::DOUBLE AS reserved_blocks,
        sum(kv_blocks)::DOUBLE AS total_blocks
    FROM grid ASOF JOIN seen ON grid.engine_id = seen.engine_id AND grid.end_s > seen.time_s
    WHERE seen.time_s >= grid.bin * $bin_s - CASE
        WHEN seen.waiting + seen.running + seen.steps = 0 THEN $idle_s ELSE $carried_s END
    GROUP BY grid.bin
),
rates AS (
    SELECT
        bin, sum(peak_blocks)::DOUBLE AS peak_blocks, sum(decode_tokens) / $bin_s AS decode_tokens_per_s,
        sum(prefill_tokens) / $bin_s AS prefill_tokens_per_s, sum(recomputed_tokens) / $bin_s AS recomputed_tokens_per_s
    FROM (
        SELECT
            bin, engine_id, max(kv_blocks_used) AS peak_blocks, sum(decode_tokens)::DOUBLE AS decode_tokens,
            sum(prefill_tokens)::DOUBLE AS prefill_tokens, sum(recomputed_tokens)::DOUBLE AS recomputed_tokens
        FROM seen GROUP BY ALL
    )
    GROUP BY bin
)
SELECT
    (bin + 1) * $bin_s AS time_s, levels.* EXCLUDE (bin), coalesce(peak_blocks, used_blocks) AS peak_blocks,
    coalesce(decode_tokens_per_s, 0.0 * running) AS decode_tokens_per_s,
    coalesce(prefill_tokens_per_s, 0.0 * running) AS prefill_tokens_per_s,
    coalesce(recomputed_tokens_per_s, 0.0 * running) AS recomputed_tokens_per_s
FROM bins LEFT JOIN levels USING (bin) LEFT JOIN rates USING (bin) ORDER BY bin
"""

_STEPS = """
SELECT coalesce(sum(steps), 0)::BIGINT, coalesce(sum(step_s), 0.0) FROM snapshots
WHERE time_s >= $since_s AND ($all OR session_id IN (FROM temp.chosen))
"""
