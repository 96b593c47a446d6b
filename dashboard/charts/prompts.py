"""Charts of prompt clusters, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from html import escape

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import base, or_blank, over_time
from dashboard.data.prompts_archive import Cluster

BOXES = 20
_COLOURS = (palette.BLUE, palette.AMBER, palette.GREEN, palette.VIOLET, palette.RED, palette.GREY)


def lengths(clusters: Sequence[Cluster], names: Sequence[str]) -> go.Figure:
    """The lengths of each cluster's answers as boxes: 10, 25, 50, 75 and 90%; ``names`` are the clusters'."""
    figure = base("")
    shown = clusters[:BOXES][::-1]
    if shown:
        low, q1, median, q3, high = zip(*(cluster.quantiles[:5] for cluster in shown), strict=True)
        figure.add_box(
            y=_reversed(names),
            orientation="h",
            lowerfence=low,
            q1=q1,
            median=median,
            q3=q3,
            upperfence=high,
            name="lengths",
            line={"color": palette.BLUE, "width": 1.5},
            fillcolor=palette.faded(palette.BLUE, 0.25),
        )
    figure.update_yaxes(type="category", rangemode="normal")
    figure.update_xaxes(title="output tokens", type="log", dtick=1)
    figure.update_layout(showlegend=False, hovermode="closest", height=_height(shown))
    return or_blank(figure, shown, "No answer of any cluster in this range")


def weights(
    found: Sequence[tuple[str, int, str, float]], clusters: Sequence[Cluster], names: Sequence[str]
) -> go.Figure:
    """The mean weight of each expert in the predictions of each cluster, stacked."""
    figure = base("")
    shown = clusters[:BOXES][::-1]
    shares = {(model, cluster, name): weight for model, cluster, name, weight in found}
    for number, name in enumerate(sorted({name for _, _, name, _ in found})):
        figure.add_bar(
            y=_reversed(names),
            x=[shares.get((one.model, one.cluster, name), 0.0) for one in shown],
            orientation="h",
            name=escape(name),
            marker_color=_COLOURS[number % len(_COLOURS)],
            marker_pattern_shape="" if number < len(_COLOURS) else "/",
            hovertemplate="%{fullData.name}: %{x:.0%}<extra></extra>",
        )
    figure.update_yaxes(type="category", rangemode="normal")
    figure.update_xaxes(title="share of the prediction", tickformat=".0%", range=[0.0, 1.02])
    figure.update_layout(barmode="stack", hovermode="closest", height=_height(shown))
    return or_blank(figure, shown if found else (), "No prediction of any cluster in this range")


def _reversed(names: Sequence[str]) -> list[str]:
    """The names as an axis takes them, which begins at the bottom."""
    return [escape(name) for name in names[:BOXES][::-1]]


def _height(clusters: Sequence[Cluster]) -> int:
    return max(260, 110 + 22 * len(clusters))


def histogram(found: Sequence[tuple[float, int]]) -> go.Figure:
    """How many answers had which length; bands grow by half an octave."""
    figure = base("answers")
    figure.add_bar(
        x=[f"{tokens:,.0f}" for tokens, _ in found],
        y=[answers for _, answers in found],
        marker_color=palette.BLUE,
        hovertemplate="from %{x} tokens: %{y:,} answers<extra></extra>",
    )
    figure.update_xaxes(title="output tokens, from", type="category", nticks=8, tickangle=0)
    figure.update_layout(showlegend=False, hovermode="closest", bargap=0.06)
    return or_blank(figure, found, "No answer in this range")


def drift(
    found: Sequence[tuple[float, float, float, float]],
    drifts: Sequence[float],
    changes: Sequence[tuple[float, str]],
    zone: tzinfo,
) -> go.Figure:
    """The lengths of one cluster over time, with the moments of drifts and of other changes."""
    figure, times = over_time("output tokens", [row[0] for row in found], zone)
    names = (("75%", 3, 1.0), ("median", 2, 2.5), ("25%", 1, 1.0))
    for name, place, width in names:
        figure.add_scatter(
            x=times,
            y=[row[place] for row in found],
            name=name,
            mode="lines+markers",
            marker={"size": 4},
            line={"color": palette.BLUE, "width": width, "dash": "solid" if place == 2 else "dot"},
            hovertemplate="%{y:,.0f} tokens",
        )
    top = max((row[3] for row in found), default=0.0)
    marks = (
        ("drift detected", [(time_s, "drift detected") for time_s in drifts], palette.RED, "triangle-down"),
        ("created, split or removed", changes, palette.VIOLET, "diamond-open"),
    )
    for name, moments, colour, symbol in marks:
        if moments and found:
            figure.add_scatter(
                x=over_time("", [time_s for time_s, _ in moments], zone)[1],
                y=[top] * len(moments),
                mode="markers",
                name=name,
                customdata=[what for _, what in moments],
                hovertemplate="%{customdata}<extra></extra>",
                marker={"symbol": symbol, "size": 12, "color": colour},
            )
    return or_blank(figure, found, "No answer in this range")
