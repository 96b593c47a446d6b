"""Marks of what happened lately, on every chart over time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, tzinfo

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import wall_times
from store.http_now import Event, EventKind

MARKS = 12
"""Largest number of marks on a chart: the latest."""

COLOURS: dict[EventKind, str] = {
    "engine up": palette.GREEN,
    "engine left": palette.GREY,
    "engine lost": palette.RED,
    "fallback": palette.AMBER,
    "order back": palette.GREEN,
    "mode": palette.BLUE,
    "drift": palette.VIOLET,
}


def marked(figure: go.Figure, events: Iterable[Event], zone: tzinfo) -> go.Figure:
    """The figure with a line and its word for each event within its time axis; itself where there is none.

    Args:
        figure: Any chart.
        events: The latest first.
        zone: Of the chart's times.
    """
    reach = _reach(figure)
    if reach is None:
        return figure
    within = [(at, event) for event in events for at in wall_times((event.time_s,), zone) if reach[0] <= at <= reach[1]]
    shown = go.Figure(figure) if within else figure  # Pages keep figures and draw them again.
    for at, event in within[:MARKS]:
        colour = COLOURS[event.kind]
        shown.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, yref="y domain", line={"color": colour, "width": 1, "dash": "dot"}
        )
        shown.add_annotation(
            x=at,
            y=1,
            yref="y domain",
            text=event.kind,
            showarrow=False,
            textangle=-90,
            xanchor="right",
            yanchor="top",
            font={"size": 10, "color": colour},
            hovertext=event.text.replace("<", "&lt;"),
        )
    return shown


def _reach(figure: go.Figure) -> tuple[datetime, datetime] | None:
    """The ends of the time axis: as set, or else of the data."""
    if figure.layout.xaxis.type != "date":
        return None
    if figure.layout.xaxis.range:
        return figure.layout.xaxis.range[0], figure.layout.xaxis.range[1]
    times = [at for trace in figure.data if trace.x is not None for at in trace.x if isinstance(at, datetime)]
    return (min(times), max(times)) if times else None
