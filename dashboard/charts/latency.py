"""The chart that compares engines, tenants or other parts, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import base, or_blank
from store.http_requests import PartLatency

DRAWN = 8


def compared(parts: Sequence[PartLatency]) -> go.Figure:
    """Median and 99th percentile of TTFT and TTLT of each part, on a log axis; the largest parts, the largest on top."""
    shown = parts[:DRAWN][::-1]
    figure = base("")
    names = [escape(part.name) for part in shown]
    marks = (
        ("TTFT, median", [part.p50_ttft_s for part in shown], palette.GREEN, "circle-open"),
        ("TTFT, 99%", [part.p99_ttft_s for part in shown], palette.GREEN, "circle"),
        ("TTLT, median", [part.p50_ttlt_s for part in shown], palette.BLUE, "diamond-open"),
        ("TTLT, 99%", [part.p99_ttlt_s for part in shown], palette.BLUE, "diamond"),
    )
    for name, values_s, colour, symbol in marks:
        figure.add_scatter(
            x=values_s,
            y=names,
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 10},
            hovertemplate="%{y}: %{x:.3g} s",
        )
    figure.update_xaxes(title="seconds", type="log", dtick=1)
    figure.update_yaxes(type="category", rangemode="normal")
    figure.update_layout(hovermode="closest", height=300)
    return or_blank(figure, shown, "No request ran to its end in this range")
