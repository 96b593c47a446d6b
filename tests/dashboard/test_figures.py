import json
import math
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard import figures, palette
from dashboard.series import Moment, Percentiles
from dashboard.views import FinishedPoint, GainView, LatencyView

odd = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 10**9)
moments = st.lists(
    st.builds(
        Moment,
        time_s=st.floats(0, 4e9),
        waiting=odd,
        running=odd,
        used_blocks=odd,
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


@settings(max_examples=30, deadline=None)
@given(moments)
def test_charts_of_the_moment_draw_whatever_comes(rows: list[Moment]) -> None:
    """None, NaN, one point, no point: a figure with titled axes comes out, in words where nothing is to draw."""
    for draw in (figures.kv_memory, figures.throughput, figures.requests):
        figure = draw(rows, UTC)
        assert_sound(figure)
        assert bool(words(figure)) == (not rows)


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
    assert filled["inside the predicted 10–90 % range"] == (reason == "stop")
    assert filled["cut short: at least so many"] == (reason == "length")


def test_nothing_to_draw_is_said_in_words() -> None:
    """An empty chart tells why it is empty."""
    assert words(figures.kv_memory([], UTC)) == ["No snapshots in this window"]
    assert words(figures.latency([], "TTLT", UTC)) == ["No request finished in this window"]
    assert words(figures.gain(GainView(status="ready"))) == ["Nothing to compare yet"]
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


def test_gain_draws_one_group_of_bars_for_what_is_known() -> None:
    """A replay that is missing is left out; the others keep their colours."""
    latency = LatencyView(mean_ttlt_s=1.0, p50_ttlt_s=1.0, p90_ttlt_s=None, p99_ttlt_s=math.inf)
    figure = figures.gain(GainView(status="ready", actual=latency, fcfs=latency))
    assert [(trace.name, trace.marker.color) for trace in figure.data] == [
        ("measured", palette.BLUE),
        ("replay, first come, first served", palette.GREY),
    ]
    assert list(figure.data[0].x) == ["mean", "median", "99th percentile"]
