"""Charts: pure functions from plain values to Plotly figures.

Every axis has its unit, every colour one meaning (`dashboard.charts.palette`), and a chart without data says so in words.
Grounds, fonts and grids come from the page's theme (`dashboard.screens.drawing`), so that a figure serves light and dark.
Text from outside goes through `_safe`, because Plotly reads a little HTML in its labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from typing import TypeAlias

import pandas as pd  # noqa: F401 - see below
import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.data.series import pit_shares, predicted_peaks
from store.http_api import Gain
from store.http_requests import FinishedPoint, LoadPoint, Percentiles

# Streamlit imports pandas in the first run that needs it, and Plotly takes whatever `sys.modules` has by that name:
# half of it, while another run is importing it. An import up here is finished before any chart is drawn.

Span: TypeAlias = tuple[float, float]
"""Begin and end of a time axis, Unix seconds."""
HEIGHT = 300
SCATTER_POINTS = 600
"""Number of latest outcomes drawn; more would only overlap."""
PIT_BINS = 10


def kv_memory(moments: Sequence[LoadPoint], lead: int | None, zone: tzinfo) -> go.Figure:
    """KV blocks in use and reserved, stacked, below the capacity; and the peak predicted ``lead`` moments before."""
    times = wall_times((moment.time_s for moment in moments), zone)
    figure = _figure("KV blocks", times, zone)
    areas = (
        ("used", [moment.used_blocks for moment in moments], palette.BLUE),
        ("reserve", [moment.reserved_blocks for moment in moments], palette.AMBER),
    )
    for name, values, colour in areas:
        figure.add_scatter(
            x=times,
            y=values,
            name=name,
            mode="lines",
            stackgroup="kv",
            stackgaps="interpolate",
            line={"color": colour, "width": 1.5},
            fillcolor=palette.faded(colour, 0.35),
            hovertemplate="%{y:,.0f} blocks",
        )
    if lead is not None:
        figure.add_scatter(
            x=times,
            y=predicted_peaks(moments, lead),
            name="predicted",
            mode="lines",
            hovertemplate="%{y:,.0f} blocks",
            line={"color": palette.VIOLET, "width": 2, "dash": "dot"},
            connectgaps=False,
        )
    capacity = [moment.total_blocks for moment in moments]
    figure.add_scatter(
        x=times,
        y=capacity,
        name="capacity",
        mode="lines",
        hovertemplate="%{y:,.0f} blocks",
        line={"color": palette.GREY, "width": 1.5, "dash": "dash"},
    )
    return or_blank(figure, moments, "No snapshots in this window")


def throughput(moments: Sequence[LoadPoint], zone: tzinfo) -> go.Figure:
    """Output, prompt and recomputed tokens per second."""
    times = wall_times((moment.time_s for moment in moments), zone)
    figure = _figure("tokens per second", times, zone)
    curves = (
        ("output", [moment.decode_tokens_per_s for moment in moments], palette.BLUE),
        ("prompt", [moment.prefill_tokens_per_s for moment in moments], palette.GREEN),
        ("recompute", [moment.recomputed_tokens_per_s for moment in moments], palette.RED),
    )
    _lines(figure, times, curves, "%{y:,.0f} tokens/s")
    return or_blank(figure, moments, "No snapshots in this window")


def requests(moments: Sequence[LoadPoint], zone: tzinfo) -> go.Figure:
    """Requests waiting and running."""
    times = wall_times((moment.time_s for moment in moments), zone)
    figure = _figure("requests", times, zone)
    curves = (
        ("waiting", [moment.waiting for moment in moments], palette.AMBER),
        ("running", [moment.running for moment in moments], palette.BLUE),
    )
    _lines(figure, times, curves, "%{y:,.0f}")
    return or_blank(figure, moments, "No snapshots in this window")


def latency(rows: Sequence[Percentiles], what: str, zone: tzinfo, span: Span | None = None) -> go.Figure:
    """Percentiles of one latency over time; ``what`` names it, such as ``TTLT``."""
    figure, times = over_time(f"{what} (seconds)", (row.time_s for row in rows), zone, span)
    counts = [row.requests for row in rows]
    curves = (
        ("median", [row.p50_s for row in rows], palette.BLUE),
        ("90%", [row.p90_s for row in rows], palette.AMBER),
        ("99%", [row.p99_s for row in rows], palette.RED),
    )
    _lines(figure, times, curves, "%{y:.3g} s of %{customdata:,} requests", counts)
    return or_blank(figure, rows, "No request finished in this window")


def predicted_against_actual(points: Iterable[FinishedPoint]) -> go.Figure:
    """Predicted median against actual output tokens, on log axes, with the ideal diagonal."""
    usable = [point for point in points if (point.p50_tokens or 0) > 0 and (point.output_tokens or 0) > 0]
    usable = usable[-SCATTER_POINTS:]
    figure = base("actual output tokens")
    ended = [point for point in usable if point.reason == "stop"]
    cut = [point for point in usable if point.reason != "stop"]
    inside = [point for point in ended if _inside(point)]
    outside = [point for point in ended if not _inside(point)]
    _cloud(figure, inside, "inside the predicted 10–90% range", palette.BLUE, "circle")
    _cloud(figure, outside, "outside it", palette.AMBER, "circle")
    _cloud(figure, cut, "truncated (lower bound)", palette.GREY, "triangle-up-open")
    if usable:
        numbers = [value for point in usable for value in (point.p50_tokens, point.output_tokens) if value]
        ends = [min(numbers) / 1.5, max(numbers) * 1.5]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="as predicted",
            hoverinfo="skip",
            line={"color": palette.GREY, "width": 1, "dash": "dash"},
        )
    log_axis = {"type": "log", "dtick": 1}
    figure.update_xaxes(title="predicted output tokens (median)", **log_axis)
    figure.update_yaxes(rangemode="normal", **log_axis)
    figure.update_layout(hovermode="closest", height=420)
    return or_blank(figure, usable, "No finished request with a prediction in this window")


def _inside(point: FinishedPoint) -> bool:
    assert point.output_tokens is not None
    low = point.p10_tokens if point.p10_tokens is not None else 0.0
    high = point.p90_tokens if point.p90_tokens is not None else math.inf
    return low <= point.output_tokens <= high


def _cloud(figure: go.Figure, points: Sequence[FinishedPoint], name: str, colour: str, symbol: str) -> None:
    figure.add_scatter(
        x=[point.p50_tokens for point in points],
        y=[point.output_tokens for point in points],
        customdata=[
            [_safe(point.request_id), _known(point.p10_tokens), _known(point.p90_tokens), _known(point.cluster)]
            for point in points
        ],
        mode="markers",
        name=name,
        marker={"color": colour, "size": 7, "symbol": symbol, "opacity": 0.65},
        hovertemplate="%{customdata[0]}<br>actual %{y:,}, predicted %{x:,.0f} (%{customdata[1]} to %{customdata[2]})"
        "<br>cluster %{customdata[3]}<extra></extra>",
    )


def pit(points: Iterable[FinishedPoint]) -> go.Figure:
    """Histogram of the probability integral transform, with the band of sampling noise."""
    shares, outcomes = pit_shares(points, PIT_BINS)
    figure = base("share of outcomes")
    centres = [(number + 0.5) / PIT_BINS for number in range(PIT_BINS)]
    ideal = 1.0 / PIT_BINS
    if outcomes:
        noise = 1.96 * math.sqrt(ideal * (1.0 - ideal) / outcomes)
        figure.add_hrect(
            y0=max(0.0, ideal - noise),
            y1=ideal + noise,
            fillcolor=palette.faded(palette.GREY, 0.25),
            line_width=0,
            layer="below",
        )
        figure.add_bar(
            x=centres,
            y=shares,
            width=0.92 / PIT_BINS,
            marker_color=palette.BLUE,
            name="outcomes",
            hovertemplate="%{y:.1%} of outcomes<extra></extra>",
        )
        figure.add_scatter(
            x=[0.0, 1.0],
            y=[ideal, ideal],
            mode="lines",
            name="calibrated (band: chance, 95%)",
            hoverinfo="skip",
            line={"color": palette.GREY, "width": 1.5, "dash": "dash"},
        )
    figure.update_xaxes(title="PIT", range=[0, 1])
    figure.update_yaxes(tickformat=".0%", range=[0.0, max(0.2, 1.15 * max(shares))])
    figure.update_layout(hovermode="closest", height=420)
    return or_blank(figure, range(outcomes), "No finished request with a prediction in this window")


def gain(found: Gain, *, in_force: bool) -> go.Figure:
    """TTLT as measured, and of two replays of the same requests: under the policy, and first come, first served.

    Args:
        found: the comparison.
        in_force: whether the policy orders the requests at present.
    """
    figure = base("TTLT (seconds)")
    figure.update_xaxes(title="the same finished requests")
    for name, latency, colour in (
        ("measured", found.actual, palette.BLUE),
        ("replay, SageSched" if in_force else "replay, mode on (not in force)", found.modelled, palette.GREEN),
        ("replay, FCFS", found.fcfs, palette.GREY),
    ):
        figure.add_bar(
            x=["mean", "median", "P90", "P99"],
            y=[latency.mean_ttlt_s, latency.p50_ttlt_s, latency.p90_ttlt_s, latency.p99_ttlt_s],
            name=name,
            marker_color=colour,
            hovertemplate="%{y:.3g} s",
        )
    figure.update_layout(barmode="group", bargap=0.25, height=360)
    return figure


def over_time(
    y_title: str, times_s: Iterable[float], zone: tzinfo, span: Span | None = None
) -> tuple[go.Figure, list[datetime]]:
    """An empty figure with a time axis, and the moments as it takes them; the axis shows the span, if one is given."""
    times = wall_times(times_s, zone)
    ends = [] if span is None else wall_times(span, zone)
    figure = _figure(y_title, ends or times, zone)
    if ends:
        figure.update_xaxes(range=ends)
    return figure, times


def _figure(y_title: str, times: Sequence[datetime], zone: tzinfo) -> go.Figure:
    figure = base(y_title)
    span_s = (times[-1] - times[0]).total_seconds() if times else 0.0
    # Seconds only where they distinguish ticks, the date only where the day may change.
    form = "%H:%M:%S" if span_s < 300 else "%H:%M" if span_s < 43_200 else "%H:%M<br>%d %b"
    figure.update_xaxes(title=f"time ({_safe(str(zone))})", type="date", tickformat=form, tickangle=0, nticks=4)
    return figure


def base(y_title: str) -> go.Figure:
    """An empty figure with the layout shared by all charts."""
    figure = go.Figure()
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "title": "",
            "traceorder": "normal",
        },
        hovermode="x unified",
        uirevision="kept",
        showlegend=True,
    )
    figure.update_yaxes(title=y_title, rangemode="tozero", automargin=True)
    figure.update_xaxes(automargin=True)
    return figure


def _lines(
    figure: go.Figure,
    times: Sequence[datetime],
    curves: Iterable[tuple[str, Sequence[float | None], str]],
    hover: str,
    extra: Sequence[object] | None = None,
) -> None:
    # A lone point, or one between two gaps, is invisible as a line.
    mode = "lines+markers" if len(times) < 60 else "lines"
    for name, values, colour in curves:
        figure.add_scatter(
            x=times,
            y=values,
            name=name,
            mode=mode,
            hovertemplate=hover,
            customdata=extra,
            line={"color": colour, "width": 2},
            marker={"size": 4},
            connectgaps=False,
        )


def or_blank(figure: go.Figure, data: Sequence[object], words: str) -> go.Figure:
    """Return the figure; without data, one with a message instead."""
    if not data:
        figure.update_layout(showlegend=False)
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(
            text=words,
            x=0.5,
            y=0.5,
            xref="paper",
            yref="paper",
            showarrow=False,
            font={"color": palette.GREY, "size": 14},
        )
    return figure


def wall_times(times_s: Iterable[float], zone: tzinfo) -> list[datetime]:
    """Moments as Plotly takes them."""
    # Plotly knows no time zones: it shows the wall clock that it is given.
    return [datetime.fromtimestamp(time_s, UTC).astimezone(zone).replace(tzinfo=None) for time_s in times_s]


def reach(figure: go.Figure, since_s: float, until_s: float, zone: tzinfo) -> None:
    """Let the time axis reach from one moment to another, whatever the data."""
    figure.update_xaxes(range=wall_times((since_s, until_s), zone))


def _safe(text: str) -> str:
    return html.escape(text)


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
