"""Charts of predictions over time, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import tzinfo
from html import escape

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import Span, base, or_blank, over_time
from dashboard.data.predictions_archive import Event, Quality

COLOURS = (palette.BLUE, palette.AMBER, palette.GREEN, palette.VIOLET, palette.RED, palette.GREY)
MARKS = {
    "drift": (palette.RED, "triangle-down"),
    "distrusted": (palette.AMBER, "x"),
    "trusted": (palette.GREEN, "circle"),
}
"""Events that are marked in charts; those of clusters are many, and look alike."""
_OF_CLUSTERS = ("cluster changed", palette.VIOLET, "diamond-open")


def errors(ratios: Sequence[float]) -> go.Figure:
    """How many answers were how many times as long as their predicted median, in bands of a half octave."""
    figure = base("share of answers")
    bands = Counter(max(-_OCTAVES, min(_OCTAVES, round(2.0 * math.log2(ratio)))) for ratio in ratios)
    shown = range(-_OCTAVES, _OCTAVES + 1) if ratios else ()
    figure.add_bar(
        x=[_band(at) for at in shown],
        y=[bands[at] / len(ratios) for at in shown],
        name="answers",
        marker_color=[palette.BLUE if abs(at) <= 2 else palette.AMBER for at in shown],
        hovertemplate="%{y:.1%} of the answers<extra></extra>",
    )
    figure.update_xaxes(title="actual over predicted length", type="category")
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(hovermode="closest", height=420, showlegend=False, bargap=0.08)
    return or_blank(figure, ratios, "No finished request with a prediction in this range")


_OCTAVES = 6
"""Half octaves to each side; beyond them all answers count as the last."""


def _band(at: int) -> str:
    """Name a band.

    >>> _band(0), _band(1), _band(-6)
    ('1×', '1.4×', '≤ 0.12×')
    """
    edge = "≤ " if at == -_OCTAVES else "≥ " if at == _OCTAVES else ""
    return f"{edge}{2.0 ** (at / 2.0):.2g}×"


def crps(rows: Sequence[Quality], events: Sequence[Event], zone: tzinfo, span: Span | None = None) -> go.Figure:
    """Mean distance between prediction and outcome over time, beside the answers' mean length."""
    figure, times = over_time("tokens", (row.time_s for row in rows), zone, span)
    curves = (
        ("mean answer length", [row.tokens for row in rows], palette.GREY, "dash"),
        ("mean prediction error (CRPS)", [row.crps_tokens for row in rows], palette.BLUE, "solid"),
    )
    for name, values, colour, dash in curves:
        figure.add_scatter(
            x=times,
            y=values,
            name=name,
            mode="lines+markers" if len(rows) < 60 else "lines",
            marker={"size": 4},
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="%{y:,.0f} tokens",
        )
    if rows:
        _mark(figure, events, max(row.tokens for row in rows), zone)
    return or_blank(figure, rows, "No predicted request ended in this range")


def coverage(rows: Sequence[Quality], zone: tzinfo, span: Span | None = None) -> go.Figure:
    """Share of outcomes inside the central 50% and 90% of their predictions, with the ideal."""
    figure, times = over_time("share of outcomes", (row.time_s for row in rows), zone, span)
    curves = (
        ("inside 90% range", [row.within_90 for row in rows], palette.GREEN),
        ("inside 50% range", [row.within_50 for row in rows], palette.BLUE),
    )
    for name, values, colour in curves:
        figure.add_scatter(
            x=times,
            y=values,
            name=name,
            mode="lines+markers" if len(rows) < 60 else "lines",
            marker={"size": 4},
            line={"color": colour, "width": 2},
            hovertemplate="%{y:.0%}",
            connectgaps=False,
        )
    for ideal in (0.5, 0.9) if rows else ():
        figure.add_hline(y=ideal, line={"color": palette.GREY, "width": 1, "dash": "dash"})
    figure.update_yaxes(tickformat=".0%", range=[0.0, 1.02])
    return or_blank(figure, rows, "No predicted request ended in this range")


def weights(
    found: Sequence[tuple[float, str, float]], events: Sequence[Event], zone: tzinfo, span: Span | None = None
) -> go.Figure:
    """Mean weight of each expert in the predictions over time, stacked to one."""
    starts_s = sorted({start_s for start_s, _, _ in found})
    shares = {(start_s, name): weight for start_s, name, weight in found}
    figure, times = over_time("share of the prediction", starts_s, zone, span)
    for number, name in enumerate(sorted({name for _, name, _ in found})):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=times,
            y=[shares.get((start_s, name), 0.0) for start_s in starts_s],
            name=escape(name),
            mode="lines",
            stackgroup="experts",
            line={"color": colour, "width": 1},
            fillcolor=palette.faded(colour, 0.45 if number < len(COLOURS) else 0.2),
            hovertemplate="%{y:.0%}",
        )
    if found:
        _mark(figure, events, 1.0, zone)
    figure.update_yaxes(tickformat=".0%", range=[0.0, 1.06])
    return or_blank(figure, found, "No prediction was made in this range")


def _mark(figure: go.Figure, events: Sequence[Event], height: float, zone: tzinfo) -> None:
    """Mark when something changed, at a height; the words are in the hover."""
    groups: dict[tuple[str, str, str], list[Event]] = {}
    for event in events:
        look = (event.kind, *MARKS[event.kind]) if event.kind in MARKS else _OF_CLUSTERS
        groups.setdefault(look, []).append(event)
    for (name, colour, symbol), members in groups.items():
        _, times = over_time("", (event.time_s for event in members), zone)
        figure.add_scatter(
            x=times,
            y=[height] * len(members),
            mode="markers",
            name=name,
            marker={"symbol": symbol, "size": 9, "color": colour},
            customdata=[_words(event) for event in members],
            hovertemplate="%{customdata}",
        )


def _words(event: Event) -> str:
    of = "" if event.cluster is None else f" of cluster {event.cluster}"
    return escape(f"{event.kind}{of}: {event.what}")
