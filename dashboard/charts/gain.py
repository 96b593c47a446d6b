"""Charts of the comparison with first come, first served, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import base, or_blank
from store.http_api import GainPart


def parts(found: Sequence[GainPart]) -> go.Figure:
    """The change of the mean TTLT of every part, with its interval; what clearly loses is red."""
    figure = base("")
    kinds = (
        ("faster", palette.GREEN, [part for part in found if part.ratio.high < 1.0]),
        (
            "undecided",
            palette.GREY,
            [part for part in found if part.ratio.low <= 1.0 <= part.ratio.high],
        ),
        ("slower", palette.RED, [part for part in found if part.ratio.low > 1.0]),
    )
    for name, colour, mine in kinds:
        if mine:
            _dots(figure, name, colour, mine)
    if found:
        figure.add_vline(x=0.0, line={"color": palette.GREY, "width": 1.5, "dash": "dash"})
    order = [_label(part) for part in reversed(found)]
    figure.update_yaxes(categoryorder="array", categoryarray=order, range=[-0.5, len(order) - 0.5])
    figure.update_xaxes(title="change of the mean TTLT", tickformat="+.0%", nticks=6)
    figure.update_layout(hovermode="closest", height=max(360, 90 + 24 * len(found)))
    return or_blank(figure, found, "No part is large enough yet")


def _dots(figure: go.Figure, name: str, colour: str, mine: Sequence[GainPart]) -> None:
    changes = [part.ratio.mean - 1.0 for part in mine]
    figure.add_scatter(
        x=changes,
        y=[_label(part) for part in mine],
        mode="markers",
        name=name,
        marker={"color": colour, "size": 9},
        customdata=[part.requests for part in mine],
        error_x={
            "type": "data",
            "symmetric": False,
            "color": colour,
            "thickness": 1.5,
            "width": 3,
            "array": [max(0.0, part.ratio.high - part.ratio.mean) for part in mine],
            "arrayminus": [max(0.0, part.ratio.mean - part.ratio.low) for part in mine],
        },
        hovertemplate="%{y}: %{x:+.1%} of %{customdata:,} requests<extra></extra>",
    )


def _label(part: GainPart) -> str:
    names = {"length": f"{part.name} tokens", "class": f"priority {part.name}"}
    return escape(names.get(part.by, f"{part.by} {part.name}"))
