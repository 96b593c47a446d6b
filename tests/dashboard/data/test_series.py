import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.data.series import (
    BANDS_PER_DECADE,
    MAX_BINS,
    foretelling_error,
    foretold,
    heat,
    moments,
    phases,
    pit_shares,
    ttft,
    ttlt,
)
from store.http_api import FinishedPoint, SnapshotPoint

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


@given(st.lists(st.tuples(st.floats(0.0, 500.0), st.none() | st.floats(-1.0, 0.0) | st.floats(1e-9, 1e4)), max_size=60))
def test_a_heatmap_counts_every_positive_value_in_its_band(values: list[tuple[float, float | None]]) -> None:
    """A value lies between the edges of its band, a request in the bin in which it ended."""
    points = [
        FinishedPoint(request_id=str(number), time_s=time_s, ttft_s=value)
        for number, (time_s, value) in enumerate(values)
    ]
    found = heat(points, 60.0, lambda point: point.ttft_s)
    assert sum(cell.requests for cell in found) == sum(value is not None and value > 0.0 for _, value in values)
    for cell in found:
        low, high = (10.0 ** (band / BANDS_PER_DECADE) for band in (cell.band, cell.band + 1))
        inside = [
            value
            for time_s, value in values
            if value is not None
            and cell.time_s <= time_s < cell.time_s + 60.0
            and low * (1 - 1e-9) <= value < high * (1 + 1e-9)
        ]
        assert len(inside) >= cell.requests


def test_phases_sum_to_the_time_to_the_last_token() -> None:
    """Aborted requests, and those of an older controller that does not tell the time in the queue, do not count."""
    points = [
        FinishedPoint(request_id="a", time_s=1.0, queue_s=1.0, ttft_s=1.5, ttlt_s=4.0, reason="stop"),
        FinishedPoint(request_id="b", time_s=2.0, queue_s=3.0, ttft_s=3.5, ttlt_s=8.0, reason="length"),
        FinishedPoint(request_id="c", time_s=3.0, queue_s=99.0, ttft_s=99.0, ttlt_s=99.0, reason="abort"),
        FinishedPoint(request_id="d", time_s=4.0, ttft_s=99.0, ttlt_s=99.0, reason="stop"),
        FinishedPoint(request_id="e", time_s=25.0, queue_s=0.0, ttft_s=0.5, ttlt_s=1.0, reason="stop"),
    ]
    first, gap, last = phases(points, 10.0)
    assert (first.queue_s, first.prefill_s, first.decode_s) == (2.0, 0.5, 3.5)
    assert gap.decode_s is None
    assert last.time_s == 30.0


def test_a_peak_is_held_against_what_was_foretold_for_it() -> None:
    """What is used and reserved now is compared with the highest use within the horizon; never above the capacity."""
    points = [
        SnapshotPoint(
            time_s=float(second), engine_id="a", kv_blocks_used=10 * second, reserved_blocks=20, kv_blocks=1000
        )
        for second in range(12)
    ]
    rows = moments(points, 1.0)
    assert foretold(rows, 2)[:4] == [None, None, 30.0, 40.0]
    assert [moment.peak_blocks for moment in rows[2:4]] == [30.0, 40.0]
    assert foretelling_error(rows, 2) == pytest.approx(0.0)
    assert foretelling_error(rows[:1], 2) is None
    full = moments(
        [
            SnapshotPoint(time_s=float(second), kv_blocks_used=90, reserved_blocks=50, kv_blocks=100)
            for second in range(5)
        ],
        1.0,
    )
    assert {moment.foretold_blocks for moment in full} == {100}
