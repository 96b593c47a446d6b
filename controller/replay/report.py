"""A replay's result for people: two tables for the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from rich.table import Table

from controller.benchmark.scheduling.plots import CDF_POINTS, COLOURS
from controller.benchmark.scheduling.report import COLUMNS, PAGE
from controller.replay.fidelity import Ratio
from controller.replay.read_history import moment
from controller.replay.replay import Replay, Served
from controller.reports.latency_summary import PolicyFigures
from store.history.atomic_file import write_whole

_LEFT_OUT = {"throughput_tokens_per_s", "makespan_s", "wall_s"}
"""Recorded arrivals bound these, and no order changes them much."""
SHOWN = tuple(column for column in COLUMNS if column[0] not in _LEFT_OUT)
AS_IT_RAN = "as it ran"
POINTS = 3_000


def fit_table(replay: Replay) -> Table:
    """What was recorded beside its replay."""
    table = Table(title="How well the replay reproduces what happened")
    for heading in ("", "recorded s", "replayed s", "error"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in _fit_rows(replay):
        table.add_row(*row)
    return table


def policies_table(replay: Replay) -> Table:
    """One row for what happened, replayed, and one for each policy."""
    table = Table(title="What else would have been (all rows are replays of the same requests)")
    for heading in _headings():
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for row in _policy_rows(replay):
        table.add_row(*row)
    return table


def describe(replay: Replay) -> str:
    """One line: which requests of which engines, when, in which mode."""
    lives = replay.recorded.lives
    first, last = (moment(edge(life.arrival_s for life in lives)) for edge in (min, max))
    engines = ", ".join(dict.fromkeys(f"{past.run.engine_id} ({past.run.model})" for past in replay.runs))
    modes = ", ".join(f"{mode} {share:.0%}" for mode, share in replay.modes.items())
    return (
        f"{len(lives)} requests that arrived from {first} to {last} UTC, {len(replay.runs)} run(s) of {engines}; "
        f"mode in force: {modes or 'not recorded'}"
    )


def verdict(replay: Replay) -> list[str]:
    """Whether the second table may be believed, and what else bears on it."""
    poor = replay.fit.poor
    typical = f"a single request is off by {replay.fit.request_error_s:.2f} s on average"
    if poor:
        first = f"WARNING: what happened is reproduced poorly: {'; '.join(poor)}; {typical}. Do not trust differences of that size."
    else:
        first = f"What happened is reproduced well; {typical}."
    return [first, *replay.notes]


def write_html(replay: Replay, path: Path) -> None:
    """Write a page that stands on its own: both tables, and the distributions behind them."""
    plots = [_reproduction(replay), _distributions(replay), _mean_against_tail(replay)]
    parts = [
        "<h2>How well the replay reproduces what happened</h2>",
        _html_table(("", "recorded s", "replayed s", "error"), _fit_rows(replay)),
        *(f"<p>{escape(line)}</p>" for line in verdict(replay)),
        _html(plots[0], first=True),
        "<h2>What else would have been</h2>",
        _html_table(tuple(_headings()), _policy_rows(replay)),
        *(_html(plot, first=False) for plot in plots[1:]),
    ]
    page = PAGE.format(
        title="History under other policies", about=escape(describe(replay)), table="", plots="".join(parts)
    )
    write_whole(path, page)


def _fit_rows(replay: Replay) -> Iterator[tuple[str, ...]]:
    for figure in replay.fit.figures:
        yield figure.name, f"{figure.recorded_s:.2f}", f"{figure.replayed_s:.2f}", f"{figure.error:+.1%}"
    recorded, replayed = replay.recorded.figures, replay.as_told.figures
    yield "preemptions", f"{recorded.preemptions:.0f}", f"{replayed.preemptions:.0f}", ""


def _headings() -> list[str]:
    return ["policy", *(heading for _, heading, _ in SHOWN), f"mean TTLT / {AS_IT_RAN} (90 % interval)"]


def _policy_rows(replay: Replay) -> Iterator[tuple[str, ...]]:
    yield AS_IT_RAN, *_cells(replay.as_told.figures), ""
    for name, served in replay.policies.items():
        yield name, *_cells(served.figures), _ratio(replay.ratio(name))


def _cells(figures: PolicyFigures) -> list[str]:
    return [form.format(getattr(figures, name)) for name, _, form in SHOWN]


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.mean:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _html_table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html(plot: go.Figure, *, first: bool) -> str:
    return str(plot.to_html(full_html=False, include_plotlyjs=first, default_height="420px"))


def _reproduction(replay: Replay) -> go.Figure:
    """Each request's replayed TTLT against its recorded one, evenly thinned."""
    every = max(1, len(replay.recorded.lives) // POINTS)
    recorded_s, replayed_s = replay.recorded.ttlt_s[::every], replay.as_told.ttlt_s[::every]
    figure = _figure("Each request as recorded and as replayed", "recorded TTLT, s", "replayed TTLT, s")
    figure.add_scatter(x=recorded_s, y=replayed_s, mode="markers", marker={"size": 4, "color": COLOURS[2]}, name="")
    longest_s = float(max(recorded_s.max(), replayed_s.max()))
    figure.add_scatter(x=[0, longest_s], y=[0, longest_s], mode="lines", line={"color": COLOURS[0]}, name="ideal")
    return figure.update_layout(showlegend=False)


def _distributions(replay: Replay) -> go.Figure:
    figure = _figure("Requests finished within a time to last token", "TTLT, s", "share of requests")
    share = np.linspace(0.0, 1.0, CDF_POINTS)
    for name, served, colour in _rows(replay):
        figure.add_scatter(
            x=np.quantile(served.ttlt_s, share), y=share, name=name, mode="lines", line={"color": colour}
        )
    return figure.update_xaxes(type="log")


def _mean_against_tail(replay: Replay) -> go.Figure:
    figure = _figure("Mean against tail", "mean TTLT, s", "P99 TTLT, s")
    for name, served, colour in _rows(replay):
        figure.add_scatter(
            x=[served.figures.mean_ttlt_s],
            y=[served.figures.p99_ttlt_s],
            name=name,
            text=[name],
            mode="markers+text",
            textposition="top center",
            marker={"size": 12, "color": colour},
        )
    return figure.update_xaxes(rangemode="tozero").update_yaxes(rangemode="tozero")


def _rows(replay: Replay) -> Iterator[tuple[str, Served, str]]:
    served = {AS_IT_RAN: replay.as_told, **replay.policies}
    for number, (name, one) in enumerate(served.items()):
        yield name, one, COLOURS[number % len(COLOURS)]


def _figure(title: str, x_title: str, y_title: str) -> go.Figure:
    layout = {"title": title, "xaxis": {"title": x_title}, "yaxis": {"title": y_title}, "template": "plotly_white"}
    return go.Figure(layout=layout)
