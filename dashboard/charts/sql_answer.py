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
MOST_COLOURS = 12
DRAWN_ROWS = 2000
"""Number of first rows drawn; more would only overlap."""


@dataclass(frozen=True)
class Axes:
    """The columns of an answer to draw, and how."""

    x: str
    y: tuple[str, ...]
    kind: Kind
    by: str | None = None
    """Column of which each value gets a colour of its own; then only the first of ``y`` is drawn."""


def numbers(rows: pa.Table) -> list[str]:
    """Columns that can be drawn as heights."""
    return [field.name for field in rows.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]


def categories(rows: pa.Table) -> list[str]:
    """Columns of text with a few values, by which a chart can be coloured."""
    names = [
        field.name for field in rows.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    return [name for name in names if 2 <= len(rows.slice(0, DRAWN_ROWS).column(name).unique()) <= MOST_COLOURS]


def suggested(rows: pa.Table) -> Axes | None:
    """Suggest a chart; None when there is nothing to draw.

    The horizontal axis is time, if there is any, or else the first column; the first other number gives the heights. Where
    several rows have the same time, the first column of text with a few values tells them apart by colour.
    """
    if rows.num_rows < 2:
        return None
    temporal = [field.name for field in rows.schema if pa.types.is_temporal(field.type)]
    x = temporal[0] if temporal else rows.column_names[0]
    heights = [name for name in numbers(rows) if name != x]
    if not heights:
        return None
    repeated = len(rows.column(x).unique()) < rows.num_rows
    by = next((name for name in categories(rows) if name != x), None) if repeated else None
    return Axes(x, (heights[0],), "lines" if temporal else "bars", by)


def answer(rows: pa.Table, axes: Axes) -> go.Figure:
    """The chosen columns of an answer."""
    shown = rows.slice(0, DRAWN_ROWS).sort_by(axes.x) if axes.kind == "lines" else rows.slice(0, DRAWN_ROWS)
    figure = base(escape(axes.y[0]) if len(axes.y) == 1 or axes.by is not None else "")
    series = _series(shown, axes)
    for (name, xs, ys), colour in zip(series, cycle(COLOURS), strict=False):
        if axes.kind == "bars":
            figure.add_bar(x=xs, y=ys, name=escape(name), marker_color=colour)
        else:
            look = {"line": {"color": colour, "width": 2}, "marker": {"size": 6, "color": colour}}
            figure.add_scatter(x=xs, y=ys, name=escape(name), mode=_mode(axes.kind, len(xs)), **look)
    figure.update_xaxes(title=escape(axes.x), nticks=8)
    figure.update_layout(height=360, showlegend=len(series) > 1, hovermode="closest" if axes.kind == "points" else "x")
    return or_blank(figure, range(shown.num_rows), "The answer has no rows")


def _series(shown: pa.Table, axes: Axes) -> list[tuple[str, list[object], list[object]]]:
    """What is drawn: names, and where on both axes."""
    xs = _labels(shown.column(axes.x))
    if axes.by is None:
        return [(name, xs, shown.column(name).to_pylist()) for name in axes.y]
    ys, values = shown.column(axes.y[0]).to_pylist(), shown.column(axes.by).to_pylist()
    found: dict[object, tuple[list[object], list[object]]] = {}
    for x, y, value in zip(xs, ys, values, strict=True):
        at = found.setdefault(value, ([], []))
        at[0].append(x)
        at[1].append(y)
    return [("none" if value is None else str(value), *at) for value, at in found.items()]


def _labels(column: pa.ChunkedArray) -> list[object]:
    values = column.to_pylist()
    return [escape(value) if isinstance(value, str) else value for value in values]


def _mode(kind: Kind, points: int) -> str:
    return "markers" if kind == "points" else "lines+markers" if points < 60 else "lines"
