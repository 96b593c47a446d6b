from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.http_requests import LoadView
from store.reading.load import MAX_BINS, read_load
from store.reading.scope import Scope

COLUMNS = (
    "waiting", "running", "kv_blocks_used", "kv_blocks", "reserved_blocks", "decode_tokens", "prefill_tokens",
    "recomputed_tokens", "steps",
)  # fmt: skip

times_s = st.floats(min_value=1.7e9, max_value=1.7e9 + 300, allow_nan=False)
counts = st.integers(0, 5000)
snapshots = st.lists(
    st.fixed_dictionaries(
        {"time_s": times_s, "engine_id": st.sampled_from(["a", "b"]), "waiting": counts, "decode_tokens": counts}
    ),
    max_size=60,
)


def load(points: Iterable[dict[str, Any]], bin_s: float, scope: Scope | None = None, *, now_s: float = 0.0) -> LoadView:
    """The load of these snapshots; what they do not say is 0."""
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE engines AS SELECT 's' || id AS session_id, id AS engine_id, 'm' || id AS model"
                           " FROM unnest(['a', 'b']) AS t(id)")  # fmt: skip
        columns = ", ".join(f"{name} BIGINT" for name in COLUMNS)
        connection.execute(
            f"CREATE TABLE snapshots (engine_id VARCHAR, session_id VARCHAR, time_s DOUBLE, received_s DOUBLE, step_s DOUBLE, {columns})"
        )
        rows = [
            (
                *(
                    point["engine_id"],
                    f"s{point['engine_id']}",
                    point["time_s"],
                    point.get("received_s", point["time_s"]),
                ),
                *(0.5, *(point.get(name, 0) for name in COLUMNS)),
            )
            for point in points
        ]
        if rows:
            connection.executemany(f"INSERT INTO snapshots VALUES (?, ?, ?, ?, ?{', ?' * len(COLUMNS)})", rows)
        return read_load(connection, scope or Scope(), 0.0, bin_s, now_s)


@pytest.mark.slow
@given(snapshots, st.sampled_from([1.0, 5.0, 20.0]))
def test_whole_bins_account_for_every_token(points: list[dict[str, Any]], bin_s: float) -> None:
    """Rate times bin width, over all shown bins, is the work of the snapshots inside them."""
    bins = load(points, bin_s).points
    shown = {round(point.time_s / bin_s) - 1 for point in bins}
    inside = [point for point in points if math.floor(point["time_s"] / bin_s) in shown]
    total = sum((point.decode_tokens_per_s or 0.0) * bin_s for point in bins)
    assert total == pytest.approx(sum(point["decode_tokens"] for point in inside))


@pytest.mark.slow
@given(snapshots)
def test_bins_follow_one_another_without_gaps(points: list[dict[str, Any]]) -> None:
    """A time in which no engine is there is a bin without values, so that a chart shows a gap and no straight line."""
    bins = load(points, 1.0).points
    assert [point.time_s for point in bins] == [bins[0].time_s + step for step in range(len(bins))]
    busy = {math.floor(point["time_s"]) for point in points}
    there = [point.time_s - 1.0 in busy or point.waiting is not None for point in bins]
    assert [point.decode_tokens_per_s is not None for point in bins] == there


def test_levels_of_several_engines_add_up_and_a_lost_engine_drops_out() -> None:
    """Each engine counts with its last level, for as long as that can be believed."""
    points = [{"time_s": float(second), "engine_id": "a", "waiting": 5} for second in range(20)]
    points += [{"time_s": float(second), "engine_id": "b", "waiting": 7} for second in range(8)]
    waiting = [point.waiting for point in load(points, 1.0).points]
    assert waiting[:5] == [12] * 5
    assert waiting[-1] == 5
    for scope in (Scope(engine_id="b"), Scope(model="mb")):
        assert {point.waiting for point in load(points, 1.0, scope).points} == {7}


def test_an_engine_that_falls_idle_computes_nothing_up_to_now() -> None:
    """It says so once in ten seconds; its rates are 0 between, and the last bin ends at the last moment that is recorded."""
    busy = [{"time_s": float(second), "engine_id": "a", "steps": 9, "decode_tokens": 50} for second in range(10)]
    idle = [{"time_s": 10.0 + 10.0 * number, "engine_id": "a"} for number in range(4)]
    points = load([*busy, *idle], 1.0, now_s=50.5).points
    assert points[-1].time_s == 49.0, "what comes in the last second and a half may not be recorded yet"
    assert [point.decode_tokens_per_s for point in points] == [50.0] * 9 + [0.0] * 39
    gone = load([*busy, *idle], 1.0, now_s=100.5).points
    assert (gone[-1].time_s, gone[-1].decode_tokens_per_s, gone[-1].running) == (99.0, None, None)


def test_a_clock_that_jumped_makes_no_endless_chart() -> None:
    """The number of bins is bounded whatever the times are."""
    points = [{"time_s": time_s, "engine_id": "a"} for time_s in (0.0, 1.0, 1.7e9, math.inf, math.nan)]
    assert 0 < len(load(points, 1.0).points) <= MAX_BINS


def test_one_engine_whose_clock_is_ahead_empties_no_chart() -> None:
    """Its snapshots lie beyond the end; where every clock is ahead theirs is believed."""
    healthy = [{"time_s": float(second), "engine_id": "a", "running": 3} for second in range(60)]
    ahead = {"time_s": 1e8, "received_s": 30.0, "engine_id": "b"}
    assert load([*healthy, ahead], 1.0).points == load(healthy, 1.0).points
    assert load([ahead, {**ahead, "time_s": 1e8 + 2.0}], 1.0).points[-1].time_s == pytest.approx(1e8, abs=5.0)


def test_steps_are_summed_over_the_whole_span() -> None:
    found = load([{"time_s": float(second), "engine_id": "a", "steps": 4} for second in range(10)], 1.0)
    assert (found.steps, found.step_s) == (40, 5.0)


def test_the_highest_use_within_a_bin_is_its_peak() -> None:
    """Of each engine, summed over the engines."""
    points = [
        {"time_s": 0.1 * tick, "engine_id": engine_id, "kv_blocks_used": 100 - tick % 10, "reserved_blocks": 20}
        for tick in range(30)
        for engine_id in "ab"
    ]
    (only,) = load(points, 1.0).points
    assert (only.peak_blocks, only.used_blocks, only.reserved_blocks) == (200.0, 182.0, 40.0)
