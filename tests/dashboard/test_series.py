import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.series import MAX_BINS, moments, pit_shares, ttft, ttlt
from dashboard.views import FinishedPoint, SnapshotPoint

times_s = st.floats(min_value=1.7e9, max_value=1.7e9 + 300, allow_nan=False)
maybe_count = st.none() | st.integers(0, 5000)
snapshots = st.lists(
    st.builds(
        SnapshotPoint,
        time_s=times_s,
        engine_id=st.sampled_from(["a", "b"]),
        waiting=maybe_count,
        running=maybe_count,
        decode_tokens=maybe_count,
        prefill_tokens=maybe_count,
    ),
    max_size=60,
)


@given(snapshots, st.sampled_from([1.0, 5.0, 20.0]))
def test_whole_bins_account_for_every_token(points: list[SnapshotPoint], bin_s: float) -> None:
    """Rate times bin width, over all shown bins, is the work of the snapshots inside them."""
    bins = moments(points, bin_s)
    shown = {round(moment.time_s / bin_s) - 1 for moment in bins}
    inside = [point for point in points if math.floor(point.time_s / bin_s) in shown]
    total = sum((moment.decode_tokens_per_s or 0.0) * bin_s for moment in bins)
    assert total == pytest.approx(sum(point.decode_tokens or 0 for point in inside))


@given(snapshots)
def test_bins_follow_one_another_without_gaps(points: list[SnapshotPoint]) -> None:
    """A time without snapshots is a bin without values, so that a chart shows a gap and no straight line."""
    bins = moments(points, 1.0)
    assert [moment.time_s for moment in bins] == [bins[0].time_s + step for step in range(len(bins))]


def test_levels_of_several_engines_add_up_and_a_lost_engine_drops_out() -> None:
    """Each engine counts with its last level, for as long as that can be believed."""
    points = [SnapshotPoint(time_s=float(second), engine_id="a", waiting=5) for second in range(20)]
    points += [SnapshotPoint(time_s=float(second), engine_id="b", waiting=7) for second in range(8)]
    waiting = [moment.waiting for moment in moments(points, 1.0)]
    assert waiting[:5] == [12] * 5
    assert waiting[-1] == 5


def test_a_clock_that_jumped_makes_no_endless_chart() -> None:
    """The number of bins is bounded whatever the times are."""
    points = [SnapshotPoint(time_s=time_s) for time_s in (0.0, 1.0, 1.7e9, math.inf, math.nan)]
    assert len(moments(points, 1.0)) <= MAX_BINS


@given(st.lists(st.floats(0.0, 1e4), min_size=1, max_size=50))
def test_percentiles_of_one_bin_are_those_of_its_requests(latencies_s: list[float]) -> None:
    """One bin holds all: its percentiles are the sample's own."""
    points = [
        FinishedPoint(request_id=str(number), time_s=5.0, ttlt_s=latency_s, reason="stop")
        for number, latency_s in enumerate(latencies_s)
    ]
    (row,) = ttlt(points, 10.0)
    assert row.requests == len(latencies_s)
    assert [row.p50_s, row.p90_s, row.p99_s] == pytest.approx(np.quantile(latencies_s, [0.5, 0.9, 0.99]))


def test_aborted_requests_have_no_time_to_last_token_but_one_to_first() -> None:
    """An abort says nothing of how long an answer takes."""
    points = [FinishedPoint(request_id="a", time_s=1.0, ttft_s=0.5, ttlt_s=9.0, reason="abort")]
    assert ttlt(points, 10.0) == []
    assert ttft(points, 10.0)[0].p50_s == 0.5


@given(st.lists(st.none() | st.floats(0.0, 1.0), max_size=80), st.integers(1, 20))
def test_pit_shares_sum_to_one(values: list[float | None], bins: int) -> None:
    """Every outcome with a PIT is in exactly one bin, the ends included."""
    shares, outcomes = pit_shares([FinishedPoint(request_id="a", time_s=0.0, pit=value) for value in values], bins)
    assert outcomes == sum(value is not None for value in values)
    assert sum(shares) == pytest.approx(1.0 if outcomes else 0.0)
