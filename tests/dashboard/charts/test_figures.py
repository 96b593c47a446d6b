import json
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.charts import figures, heatmaps, marks, palette
from dashboard.charts import predictions as prediction_charts
from dashboard.charts import service as service_charts
from dashboard.data.predictions_archive import Event, Quality
from store import http_now
from store.http_api import Gain, Latency, PerRequest, Ratio, RecomputeTax, Reproduction
from store.http_requests import Cell, FinishedPoint, LoadPoint, Percentiles, Phases
from store.http_service import AttainmentPoint

odd = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 10**9)
moments = st.lists(
    st.builds(
        LoadPoint,
        time_s=st.floats(0, 4e9),
        waiting=odd,
        running=odd,
        used_blocks=odd,
        peak_blocks=odd,
        reserved_blocks=odd,
        total_blocks=odd,
        decode_tokens_per_s=odd,
        prefill_tokens_per_s=odd,
        recomputed_tokens_per_s=odd,
    ),
    max_size=5,
)
finished = st.lists(
    st.builds(
        FinishedPoint,
        request_id=st.text(max_size=8),
        time_s=st.floats(0, 4e9),
        output_tokens=st.none() | st.integers(0, 10**6),
        reason=st.sampled_from([None, "stop", "length", "abort", "error"]),
        p10_tokens=st.none() | st.floats(0, 1e6),
        p50_tokens=st.none() | st.floats(0, 1e6),
        p90_tokens=st.none() | st.floats(0, 1e6),
        pit=st.none() | st.floats(allow_nan=True),
    ),
    max_size=6,
)


def titles(figure: Any) -> tuple[str, str]:
    return figure.layout.xaxis.title.text, figure.layout.yaxis.title.text


def words(figure: Any) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def assert_sound(figure: Any) -> None:
    json.loads(figure.to_json())
    assert all(titles(figure)), "both axes say what they show"
    assert all(trace.name for trace in figure.data)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(moments)
def test_charts_of_the_moment_draw_whatever_comes(rows: list[LoadPoint]) -> None:
    """None, NaN, one point, no point: a figure with titled axes comes out, in words where nothing is to draw."""
    drawn = [figures.kv_memory(rows, lead, UTC) for lead in (None, 1, 3)]
    for figure in (*drawn, figures.throughput(rows, UTC), figures.requests(rows, UTC)):
        assert_sound(figure)
        assert bool(words(figure)) == (not rows)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(finished)
def test_charts_of_predictions_draw_whatever_comes(points: list[FinishedPoint]) -> None:
    """Zero lengths have no place on a log axis and requests without a prediction none in the chart."""
    figure = figures.predicted_against_actual(points)
    assert_sound(figure)
    drawn = [value for trace in figure.data for axis in (trace.x, trace.y) for value in axis]
    assert all(value > 0 for value in drawn)
    assert_sound(figures.pit(points))


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_was_cut_is_told_from_one_that_ended(reason: str) -> None:
    """Colour and symbol say whether the outcome is known or only bounded from below."""
    point = FinishedPoint(
        request_id="a", time_s=0.0, output_tokens=50, p10_tokens=10.0, p50_tokens=40.0, p90_tokens=90.0, reason=reason
    )
    filled = {trace.name: len(trace.x) for trace in figures.predicted_against_actual([point]).data}
    assert filled["inside the predicted 10–90% range"] == (reason == "stop")
    assert filled["truncated (lower bound)"] == (reason == "length")


def test_nothing_to_draw_is_said_in_words() -> None:
    """An empty chart tells why it is empty."""
    assert words(figures.kv_memory([], 2, UTC)) == ["No snapshots in this window"]
    assert words(figures.latency([], "TTLT", UTC)) == ["No request finished in this window"]
    assert words(figures.pit([])) == ["No finished request with a prediction in this window"]


def test_times_are_shown_on_the_wall_clock_of_the_zone() -> None:
    """The axis names the zone and the points carry its clock."""
    rows = [Percentiles(0.0, 3, 1.0, 2.0, 3.0)]
    figure = figures.latency(rows, "TTFT", ZoneInfo("Asia/Tokyo"))
    assert "Asia/Tokyo" in titles(figure)[0]
    assert figure.data[0].x[0].hour == 9


def test_html_in_a_request_id_is_shown_and_not_obeyed() -> None:
    """Plotly would make a link or bold text of it."""
    point = FinishedPoint(request_id="<b>x</b>", time_s=0.0, output_tokens=5, p50_tokens=4.0, reason="stop")
    text = figures.predicted_against_actual([point]).to_json()
    assert "<b>x" not in text.encode().decode("unicode_escape")
    assert "&lt;b&gt;x" in text.encode().decode("unicode_escape")


def test_gain_draws_one_group_of_bars_for_each_of_the_three() -> None:
    """What was measured and both replays, each in its colour, with mean and percentiles in order."""
    latencies = [
        Latency(mean_ttlt_s=1.0 * n, p50_ttlt_s=2.0 * n, p90_ttlt_s=3.0 * n, p99_ttlt_s=4.0 * n) for n in (1, 2, 3)
    ]
    tax = RecomputeTax(preemptions=0, recomputed_tokens=0, share=0.0)
    compared = Gain(
        requests=40,
        actual=latencies[0],
        modelled=latencies[1],
        fcfs=latencies[2],
        ratio=Ratio(mean=0.7, low=0.6, high=0.8),
        reproduction=Reproduction(mode="on", mean_ttlt_error=0.0, p99_ttlt_error=None, request_error_s=0.0, poor=()),
        parts=(),
        fcfs_tax=tax,
        tax=tax,
        per_request=PerRequest(faster=0.5, slower=0.1, fcfs_max_ttlt_s=9.0, max_ttlt_s=9.0),
        method="replay",
    )
    figure = figures.gain(compared, in_force=True)
    assert_sound(figure)
    assert [(trace.name, trace.marker.color, trace.y) for trace in figure.data] == [
        ("measured", palette.BLUE, (1.0, 2.0, 3.0, 4.0)),
        ("replay, SageSched", palette.GREEN, (2.0, 4.0, 6.0, 8.0)),
        ("replay, FCFS", palette.GREY, (3.0, 6.0, 9.0, 12.0)),
    ]
    assert list(figure.data[0].x) == ["mean", "median", "P90", "P99"]


cells = st.lists(
    st.builds(
        Cell,
        time_s=st.integers(0, 500).map(lambda bucket: 60.0 * bucket),
        band=st.integers(-30, 40),
        requests=st.integers(1, 9),
    ),
    max_size=30,
    unique_by=lambda cell: (cell.time_s, cell.band),
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(cells, st.sampled_from(["seconds", "tokens"]))
def test_a_heatmap_shows_every_request_once(rows: list[Cell], unit: heatmaps.Unit) -> None:
    """Each cell stands in its bin and its band; where nothing ended there is nothing, not a zero."""
    figure = heatmaps.heat(rows, 60.0, unit, UTC)
    assert_sound(figure)
    shown = [count for line in figure.data[0].z for count in line if count is not None]
    assert sorted(shown) == sorted(cell.requests for cell in rows)
    if rows:
        low = min(cell.band for cell in rows)
        first_s = min(cell.time_s for cell in rows)
        for cell in rows:
            assert figure.data[0].z[cell.band - low][round((cell.time_s - first_s) / 60.0)] == cell.requests


def test_a_heatmap_of_a_clock_that_jumped_stays_small() -> None:
    """The latest bins are shown."""
    figure = heatmaps.heat([Cell(0.0, 1, 1), Cell(1.7e9, 2, 5)], 1.0, "seconds", UTC)
    assert len(figure.data[0].x) == 1
    assert [list(line) for line in figure.data[0].z] == [[5]]


def test_finished_requests_are_stacked_by_reason_per_minute() -> None:
    """Also a reason that nobody thought of."""
    rows = [(0.0, "stop", 10), (0.0, "odd", 1), (120.0, "stop", 20)]
    figure = heatmaps.finished(rows, 120.0, UTC, (0.0, 240.0))
    assert {trace.name: tuple(trace.y) for trace in figure.data} == {"stop": (5.0, 10.0), "odd": (0.5,)}


def test_the_last_partial_bin_does_not_look_like_a_fall() -> None:
    """It is divided by the time that it covers, and left out where that is less than half of it."""
    rows = [(0.0, "stop", 10), (60.0, "stop", 10), (120.0, "stop", 6)]
    (shown,) = heatmaps.finished(rows, 60.0, UTC, (0.0, 156.0)).data
    assert tuple(shown.y) == (10.0, 10.0, 10.0)
    (shown,) = heatmaps.finished([*rows[:2], (120.0, "stop", 1)], 60.0, UTC, (0.0, 126.0)).data
    assert tuple(shown.y) == (10.0, 10.0)
    (shown,) = heatmaps.finished([(0.0, "stop", 1)], 60.0, UTC, (0.0, 6.0)).data
    assert tuple(shown.y) == (10.0,), "where there is nothing else it is shown"


def test_a_time_axis_shows_the_chosen_span_also_where_nothing_ended() -> None:
    """From its begin up to now."""
    figure = figures.latency([Percentiles(100.0, 3, 1.0, 2.0, 3.0)], "TTFT", UTC, (0.0, 600.0))
    low, high = figure.layout.xaxis.range
    assert (high - low).total_seconds() == 600.0


def test_phases_and_predictions_over_time_draw_what_there_is() -> None:
    """With gaps where nothing ended, and events marked with their words."""
    assert_sound(heatmaps.phases([Phases(0.0, 1.0, 0.1, 2.0), Phases(60.0, None, None, None)], UTC))
    assert words(heatmaps.phases([Phases(60.0, None, None, None)], UTC)) == ["No request ran to its end in this window"]
    rows = [Quality(0.0, 50.0, 200.0, 0.5, None)]
    events = [Event(1.0, "drift", "m", 3, "mean 90 to 40 tokens"), Event(2.0, "split", None, 4, "from cluster <b>")]
    figure = prediction_charts.crps(rows, events, UTC)
    assert_sound(figure)
    assert [trace.name for trace in figure.data[2:]] == ["drift", "cluster changed"]
    assert figure.data[3].customdata[0] == "split of cluster 4: from cluster &lt;b&gt;"
    assert_sound(prediction_charts.coverage(rows, UTC))
    shares = prediction_charts.weights([(0.0, "a", 0.4), (0.0, "b", 0.6), (60.0, "b", 1.0)], events, UTC)
    assert_sound(shares)
    assert [tuple(trace.y) for trace in shares.data[:2]] == [(0.4, 0.0), (0.6, 1.0)]
    assert words(prediction_charts.weights([], events, UTC)) == ["No prediction was made in this range"]


def test_marks_are_drawn_on_a_copy() -> None:
    """A page that draws a kept figure again does not add its marks again."""
    figure, _ = figures.over_time("s", (0.0, 60.0), UTC, (0.0, 60.0))
    event = http_now.Event(time_s=30.0, kind="mode", level="info", engine_id="", text="mode: on")
    late = http_now.Event(time_s=90.0, kind="mode", level="info", engine_id="", text="mode: on")
    assert len(marks.marked(figure, [event, late], UTC).layout.shapes) == 1
    assert not figure.layout.shapes
    assert marks.marked(figure, [late], UTC) is figure


def test_attainment_breaks_where_nothing_ended_and_has_no_endless_gap() -> None:
    """One empty bucket stands for a gap of any length, as one clock that is years ahead makes."""
    points = [
        AttainmentPoint(by="class", name="chat", time_s=time_s, judged=10, met=9) for time_s in (0.0, 20.0, 100.0, 1e11)
    ]
    curve = service_charts.attainment(points, 20.0, {}, UTC).data[0]
    assert list(curve.y) == [0.9, 0.9, None, 0.9, None, 0.9]
