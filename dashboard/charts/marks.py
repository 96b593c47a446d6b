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


def mark(figure: go.Figure, events: Iterable[Event], zone: tzinfo) -> None:
    """Draw a line with its word for each event within the chart's time axis; nothing on charts without one.

    Args:
        figure: Any chart.
        events: The latest first.
        zone: Of the chart's times.
    """
    reach = _reach(figure)
    if reach is None:
        return
    marked = [(at, event) for event in events for at in wall_times((event.time_s,), zone) if reach[0] <= at <= reach[1]]
    for at, event in marked[:MARKS]:
        colour = COLOURS[event.kind]
        figure.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, yref="y domain", line={"color": colour, "width": 1, "dash": "dot"}
        )
        figure.add_annotation(
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


def _reach(figure: go.Figure) -> tuple[datetime, datetime] | None:
    """The ends of the time axis: as set, or else of the data."""
    if figure.layout.xaxis.type != "date":
        return None
    if figure.layout.xaxis.range:
        return figure.layout.xaxis.range[0], figure.layout.xaxis.range[1]
    times = [at for trace in figure.data if trace.x is not None for at in trace.x if isinstance(at, datetime)]
    return (min(times), max(times)) if times else None
