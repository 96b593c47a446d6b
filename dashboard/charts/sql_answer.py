"""The chart of an answer in SQL: which columns can be drawn, and the figure, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Literal, TypeAlias

import plotly.graph_objects as go
import pyarrow as pa

from dashboard.charts import palette
from dashboard.charts.figures import base, or_blank

Kind: TypeAlias = Literal["lines", "bars", "points"]
COLOURS = (palette.BLUE, palette.AMBER, palette.GREEN, palette.VIOLET, palette.RED, palette.GREY)
DRAWN_ROWS = 2000
"""Number of first rows drawn; more would only overlap."""


@dataclass(frozen=True)
class Axes:
    """The columns of an answer to draw, and how."""

    x: str
    y: tuple[str, ...]
    kind: Kind


def numbers(rows: pa.Table) -> list[str]:
    """Columns that can be drawn as heights."""
    return [field.name for field in rows.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]


def suggested(rows: pa.Table) -> Axes | None:
    """Suggest a chart; None when there is nothing to draw.

    The horizontal axis is time, if there is any, or else the first column; the first other number gives the heights.
    """
    if rows.num_rows < 2:
        return None
    temporal = [field.name for field in rows.schema if pa.types.is_temporal(field.type)]
    x = temporal[0] if temporal else rows.column_names[0]
    heights = [name for name in numbers(rows) if name != x]
    if not heights:
        return None
    return Axes(x, (heights[0],), "lines" if temporal else "bars")


def answer(rows: pa.Table, axes: Axes) -> go.Figure:
    """The chosen columns of an answer."""
    shown = rows.slice(0, DRAWN_ROWS).sort_by(axes.x) if axes.kind == "lines" else rows.slice(0, DRAWN_ROWS)
    xs = _labels(shown.column(axes.x))
    figure = base(escape(axes.y[0]) if len(axes.y) == 1 else "")
    for name, colour in zip(axes.y, cycle(COLOURS), strict=False):
        ys = shown.column(name).to_pylist()
        if axes.kind == "bars":
            figure.add_bar(x=xs, y=ys, name=escape(name), marker_color=colour)
        else:
            look = {"line": {"color": colour, "width": 2}, "marker": {"size": 6, "color": colour}}
            figure.add_scatter(x=xs, y=ys, name=escape(name), mode=_mode(axes.kind, len(xs)), **look)
    figure.update_xaxes(title=escape(axes.x), nticks=8)
    figure.update_layout(height=360, showlegend=len(axes.y) > 1, hovermode="closest" if axes.kind == "points" else "x")
    return or_blank(figure, xs, "The answer has no rows")


def _labels(column: pa.ChunkedArray) -> list[object]:
    values = column.to_pylist()
    return [escape(value) if isinstance(value, str) else value for value in values]


def _mode(kind: Kind, points: int) -> str:
    return "markers" if kind == "points" else "lines+markers" if points < 60 else "lines"
