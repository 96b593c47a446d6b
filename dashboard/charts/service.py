"""Charts of service levels, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from html import escape

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import Span, base, or_blank, over_time
from store.http_service import AttainmentPoint, Misses, TenantService
from store.service_levels import CAUSES, Cause

COLOURS = (palette.BLUE, palette.GREEN, palette.VIOLET, palette.AMBER, palette.RED, palette.GREY)
_CAUSE_COLOURS: dict[Cause, str] = {
    "queued": palette.AMBER,
    "prefill": palette.GREEN,
    "paced": palette.BLUE,
    "preempted": palette.VIOLET,
    "too_long": palette.GREY,
    "shed": palette.faded(palette.AMBER, 0.45),
    "failed": palette.RED,
}
CLASSES_DRAWN = 8


def attainment(
    points: Sequence[AttainmentPoint],
    bucket_s: float,
    objectives: Mapping[str, float],
    zone: tzinfo,
    span: Span | None = None,
) -> go.Figure:
    """Share of the requests that met all their targets over time, a curve for each name, with its objective dashed.

    Args:
        points: of classes or of tenants, by name and time.
        bucket_s: width of a bucket in seconds; where a name has none the curve is broken.
        objectives: by name; none for tenants.
        zone: of the time axis.
        span: that the time axis shows.
    """
    starts_s = sorted({point.time_s for point in points})
    grid_s = _grid(starts_s, bucket_s)
    figure, times = over_time("share that met all targets", grid_s, zone, span)
    names = dict.fromkeys(point.name for point in points)
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        mine = {round(point.time_s / bucket_s): point for point in points if point.name == name}
        at = [mine.get(round(start_s / bucket_s)) for start_s in grid_s]
        figure.add_scatter(
            x=times,
            y=[None if point is None else point.met / point.judged for point in at],
            customdata=[0 if point is None else point.judged for point in at],
            name=escape(name),
            mode="lines+markers" if len(times) < 60 else "lines",
            line={"color": colour, "width": 2},
            marker={"size": 4},
            hovertemplate="%{y:.1%} of %{customdata:,} requests",
            connectgaps=False,
        )
        if name in objectives:
            figure.add_hline(y=objectives[name], line={"color": colour, "width": 1.5, "dash": "dash"})
    figure.update_yaxes(tickformat=".0%", range=[0.0, 1.03])
    return or_blank(figure, points, "No request with targets ended in this range")


def causes(misses: Sequence[Misses]) -> go.Figure:
    """How many requests of each class missed a target, stacked by why."""
    totals: dict[str, int] = {}
    for miss in misses:
        totals[miss.service_class] = totals.get(miss.service_class, 0) + miss.requests
    classes = sorted(totals, key=lambda name: totals[name])[-CLASSES_DRAWN:]
    figure = base("")
    for cause, words in CAUSES.items():
        numbers = [
            sum(miss.requests for miss in misses if miss.service_class == name and miss.cause == cause)
            for name in classes
        ]
        if any(numbers):
            figure.add_bar(
                y=[escape(name) for name in classes],
                x=numbers,
                name=words,
                orientation="h",
                marker_color=_CAUSE_COLOURS[cause],
                hovertemplate="%{x:,} requests",
            )
    figure.update_xaxes(title="requests that missed a target")
    figure.update_layout(barmode="stack", bargap=0.35, hovermode="y unified")
    return or_blank(figure, misses, "No request missed a target in this range")


def shares(tenants: Sequence[TenantService]) -> go.Figure:
    """Each tenant's part of the engine-seconds, beside its weight's part."""
    known = [tenant for tenant in tenants if tenant.share is not None]
    figure = base("share of the engine-seconds")
    names = [escape(tenant.name) for tenant in known]
    for name, values, colour in (
        ("used", [tenant.share for tenant in known], palette.BLUE),
        ("fair share by weight", [tenant.fair_share for tenant in known], palette.GREY),
    ):
        figure.add_bar(x=names, y=values, name=name, marker_color=colour, hovertemplate="%{y:.1%}")
    figure.update_xaxes(title="tenant", type="category")
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(barmode="group", bargap=0.3)
    return or_blank(figure, known, "What tenants used is not known in this range")


def _grid(starts_s: Sequence[float], bucket_s: float) -> list[float]:
    """The buckets, and the empty one behind each, so that a chart shows a gap where nothing ended."""
    numbers = {round(start_s / bucket_s) for start_s in starts_s}
    last = max(numbers, default=0)
    return [number * bucket_s for number in sorted(numbers | {number + 1 for number in numbers if number < last})]
