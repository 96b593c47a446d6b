"""Heatmaps over time and what goes with them, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import tzinfo
from typing import Literal, TypeAlias

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import Span, or_blank, over_time
from store.http_api import BANDS_PER_DECADE
from store.http_requests import Cell, Phases

Unit: TypeAlias = Literal["seconds", "tokens"]
MAX_BINS = 2000
"""No chart shows more; a clock that jumped must not make endless empty bins."""
REASONS = {"stop": palette.BLUE, "length": palette.AMBER, "abort": palette.GREY, "error": palette.RED}
"""How requests end, in the order in which they are stacked."""
_SHADES = [
    [share, palette.faded(palette.BLUE, opacity)]
    for share, opacity in ((0.0, 0.1), (0.1, 0.35), (0.4, 0.7), (1.0, 1.0))
]
"""One hue, so that it reads on both grounds and to every eye; few requests stay visible beside many."""
_HEIGHT = 260


def heat(cells: Sequence[Cell], bin_s: float, unit: Unit, zone: tzinfo, span: Span | None = None) -> go.Figure:
    """How many requests ended when, by a value in bands that grow in equal ratios; an empty cell stays ground."""
    last = max((cell.time_s for cell in cells), default=0.0)
    # A clock that jumped must not make endless empty bins.
    cells = [cell for cell in cells if cell.time_s > last - MAX_BINS * bin_s]
    first = min((cell.time_s for cell in cells), default=0.0)
    starts_s = [first + number * bin_s for number in range(round((last - first) / bin_s) + 1)]
    figure, times = over_time(
        "duration" if unit == "seconds" else unit, (start_s + bin_s / 2 for start_s in starts_s), zone, span
    )
    low, high = (min(cell.band for cell in cells), max(cell.band for cell in cells)) if cells else (0, 0)
    counts: list[list[int | None]] = [[None] * len(starts_s) for _ in range(low, high + 1)]
    for cell in cells:
        counts[cell.band - low][round((cell.time_s - first) / bin_s)] = cell.requests
    bands = list(range(low, high + 1))
    figure.add_heatmap(
        x=times,
        y=[band + 0.5 for band in bands],
        z=counts,
        name="requests",
        colorscale=_SHADES,
        zmin=0,
        showscale=False,
        customdata=[[f"{_edge(band, unit)} to {_edge(band + 1, unit)}"] * len(times) for band in bands],
        hovertemplate="%{z:,} requests of %{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=0.5,
        ygap=0.5,
    )
    ticks = _ticks(low, high + 1)
    # Not to zero: the axis counts bands, and the lowest need not be near the zeroth.
    figure.update_yaxes(
        tickvals=[_band_of(value) for value in ticks],
        ticktext=[_amount(value, unit) for value in ticks],
        range=[low, high + 1],
        rangemode="normal",
        showgrid=False,
    )
    figure.update_xaxes(showgrid=False)
    figure.update_layout(height=_HEIGHT, showlegend=False, hovermode="closest", margin={"t": 24})
    if cells:
        darkest = max(cell.requests for cell in cells)
        figure.add_annotation(
            text=f"darkest cell: {darkest:,} request{'s' if darkest > 1 else ''}",
            x=1.0,
            y=1.0,
            xref="paper",
            yref="paper",
            xanchor="right",
            yanchor="bottom",
            showarrow=False,
            font={"color": palette.GREY, "size": 11},
        )
    return or_blank(figure, cells, "No request finished in this window")


def phases(rows: Sequence[Phases], zone: tzinfo, span: Span | None = None) -> go.Figure:
    """Mean time in the queue, until the first token, and until the last one, stacked to the mean TTLT."""
    # Stacked curves would go on flat beyond the first and the last value.
    known = [number for number, row in enumerate(rows) if row.decode_s is not None]
    rows = rows[known[0] : known[-1] + 1] if known else ()
    figure, times = over_time("seconds, mean", (row.time_s for row in rows), zone, span)
    parts = (
        ("queue", [row.queue_s for row in rows], palette.AMBER),
        ("prefill", [row.prefill_s for row in rows], palette.GREEN),
        ("decode", [row.decode_s for row in rows], palette.BLUE),
    )
    for name, values, colour in parts:
        figure.add_scatter(
            x=times,
            y=values,
            name=name,
            mode="lines",
            stackgroup="phases",
            stackgaps="interpolate",
            line={"color": colour, "width": 1.5},
            fillcolor=palette.faded(colour, 0.35),
            hovertemplate="%{y:.3g} s",
        )
    figure.update_layout(height=_HEIGHT + 40)
    return or_blank(figure, rows, "No request ran to its end in this window")


def finished(rows: Sequence[tuple[float, str, int]], bucket_s: float, zone: tzinfo, span: Span) -> go.Figure:
    """Finished requests per minute by how they ended, from starts of buckets of ``bucket_s`` seconds.

    A bucket that the span covers in part is divided by that part, and left out where that is less than half of it: it
    would look as if traffic fell.
    """
    rows = [row for row in rows if 2.0 * _covered_s(row[0], bucket_s, span) >= bucket_s] or rows
    figure, _ = over_time("requests per minute", [start_s for start_s, _, _ in rows], zone, span)
    for reason in [*REASONS, *sorted({reason for _, reason, _ in rows} - set(REASONS))]:
        here = [(start_s + bucket_s / 2, number) for start_s, name, number in rows if name == reason]
        if here:
            _, times = over_time("", (middle_s for middle_s, _ in here), zone)
            figure.add_bar(
                x=times,
                y=[60.0 * number / _covered_s(middle_s - bucket_s / 2, bucket_s, span) for middle_s, number in here],
                name=reason,
                width=900.0 * bucket_s,
                marker_color=REASONS.get(reason, palette.VIOLET),
                hovertemplate="%{y:,.3g} per minute",
            )
    figure.update_layout(barmode="stack")
    return or_blank(figure, rows, "No request ended in this range")


def _covered_s(start_s: float, bucket_s: float, span: Span) -> float:
    """How many seconds of a bucket lie within the span; at least one."""
    return max(1.0, min(start_s + bucket_s, span[1]) - max(start_s, span[0]))


def _ticks(low: int, high: int) -> list[float]:
    """Values between two band edges that get a label: the decades, and where there are few of them twos and fives too.

    >>> _ticks(-16, 8), _ticks(-18, -9)
    ([0.01, 0.1, 1.0, 10.0], [0.01, 0.02, 0.05])
    """
    decades = range(math.floor(low / BANDS_PER_DECADE), math.floor(high / BANDS_PER_DECADE) + 1)
    steps = (1, 2, 5) if high - low < 2 * BANDS_PER_DECADE else (1,)
    values = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [value for value in values if low <= _band_of(value) <= high]


def _band_of(value: float) -> float:
    """Where a value stands on an axis that counts bands."""
    return BANDS_PER_DECADE * math.log10(value)


def _edge(band: int, unit: Unit) -> str:
    """The lower end of a band in words.

    >>> _edge(-24, "seconds"), _edge(8, "seconds"), _edge(16, "tokens")
    ('1 ms', '10 s', '100')
    """
    return _amount(10.0 ** (band / BANDS_PER_DECADE), unit)


def _amount(value: float, unit: Unit) -> str:
    if unit == "tokens":
        return f"{value:,.0f}"
    return f"{1000 * value:.3g} ms" if value < 0.9995 else f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"
