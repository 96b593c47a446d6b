"""Report of a replay: two tables for the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from rich.table import Table

from controller.replay.read_history import moment
from controller.replay.replay import Replay, Served
from controller.reports.latency_summary import PolicyFigures
from controller.reports.page import CDF_POINTS, colour, heading, plot, write_page
from controller.reports.tables import COLUMNS, html_table, share_text, text_table
from store.http_api import Ratio
from store.service_levels import TARGETS

_LEFT_OUT = {"throughput_tokens_per_s", "makespan_s", "wall_s"}
"""Recorded arrivals bound these, and no order changes them much."""
SHOWN = tuple(column for column in COLUMNS if column[0] not in _LEFT_OUT)
AS_IT_RAN = "as it ran"
POINTS = 3_000
_FIT_TITLE = "How well the replay reproduces what happened"
_FIT_HEADINGS = ("", "recorded s", "replayed s", "error")


def fit_table(replay: Replay) -> Table:
    """The recorded figures and their reproduction."""
    return text_table(_FIT_TITLE, _FIT_HEADINGS, _fit_rows(replay), left=1)


def policies_table(replay: Replay) -> Table:
    """One row for the reproduction, and one for each policy."""
    title = "What else would have been (all rows are replays of the same requests)"
    return text_table(title, _headings(), _policy_rows(replay), left=1)


def service_table(replay: Replay) -> Table:
    """Which share of the requests met its targets: as recorded, in the reproduction, and under each policy."""
    title = "Targets met: all of a request's, by class, and each target on its own"
    return text_table(title, _service_headings(replay), _service_rows(replay), left=1)


def describe(replay: Replay) -> str:
    """One line that names the requests, their time, engines and modes."""
    completed = replay.recorded.completed
    first, last = (moment(edge(request.arrival_s for request in completed)) for edge in (min, max))
    engines = ", ".join(dict.fromkeys(f"{past.run.engine_id} ({past.run.model})" for past in replay.runs))
    modes = ", ".join(f"{mode} {share:.0%}" for mode, share in replay.modes.items())
    return (
        f"{len(completed)} requests that arrived from {first} to {last} UTC, {len(replay.runs)} run(s) of {engines}; "
        f"mode in force: {modes or 'not recorded'}"
    )


def verdict(replay: Replay) -> list[str]:
    """Lines that say whether the second table can be trusted, and what affects it."""
    poor = replay.fit.poor
    typical = f"a single request is off by {replay.fit.request_error_s:.2f} s on average"
    if poor:
        first = f"WARNING: what happened is reproduced poorly: {'; '.join(poor)}; {typical}. Do not trust differences of that size."
    else:
        first = f"What happened is reproduced well; {typical}."
    return [first, *replay.notes]


def write_html(replay: Replay, path: Path) -> None:
    """Write a self-contained page with both tables and the distributions."""
    write_page(
        path,
        title="History under other policies",
        about=describe(replay),
        parts=[
            heading(_FIT_TITLE),
            html_table(_FIT_HEADINGS, _fit_rows(replay)),
            *(f"<p>{escape(line)}</p>" for line in verdict(replay)),
            _reproduction(replay),
            heading("What else would have been"),
            html_table(_headings(), _policy_rows(replay)),
            *_service_parts(replay),
            _distributions(replay),
            _mean_against_tail(replay),
        ],
    )


def _fit_rows(replay: Replay) -> Iterator[tuple[str, ...]]:
    for figure in replay.fit.figures:
        yield figure.name, f"{figure.recorded_s:.2f}", f"{figure.replayed_s:.2f}", f"{figure.error:+.1%}"
    recorded, replayed = replay.recorded.figures, replay.reproduced.figures
    yield "preemptions", f"{recorded.preemptions:.0f}", f"{replayed.preemptions:.0f}", ""


def _headings() -> list[str]:
    return ["policy", *(title for _, title, _ in SHOWN), f"mean TTLT / {AS_IT_RAN} (90% interval)"]


def _policy_rows(replay: Replay) -> Iterator[tuple[str, ...]]:
    yield AS_IT_RAN, *_cells(replay.reproduced.figures), ""
    for name, served in replay.policies.items():
        yield name, *_cells(served.figures), _ratio(replay.ratio(name))


def _service_parts(replay: Replay) -> list[str]:
    if not replay.spec.slo:
        return []
    return [heading("Targets met"), html_table(_service_headings(replay), _service_rows(replay))]


def _service_headings(replay: Replay) -> list[str]:
    classes = replay.service(replay.recorded).classes
    return ["policy", "all targets", *classes, *(target.upper() for target in TARGETS), "missed most, why"]


def _service_rows(replay: Replay) -> Iterator[tuple[str, ...]]:
    served = {"recorded": replay.recorded, AS_IT_RAN: replay.reproduced, **replay.policies}
    for name, one in served.items():
        found = replay.service(one)
        yield (
            name,
            share_text(found.all.goodput),
            *(share_text(of_class.goodput) for of_class in found.classes.values()),
            *(share_text(found.all.attainment.get(target)) for target in TARGETS),
            ", ".join((*tuple(found.all.missed)[:1], *tuple(found.all.causes)[:1])),
        )


def _cells(figures: PolicyFigures) -> list[str]:
    return [form.format(getattr(figures, name)) for name, _, form in SHOWN]


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.mean:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _reproduction(replay: Replay) -> go.Figure:
    """Each request's replayed TTLT against its recorded one, evenly thinned."""
    every = max(1, len(replay.recorded.completed) // POINTS)
    recorded_s, replayed_s = replay.recorded.ttlt_s[::every], replay.reproduced.ttlt_s[::every]
    figure = plot("Each request as recorded and as replayed", "recorded TTLT, s", "replayed TTLT, s")
    figure.add_scatter(x=recorded_s, y=replayed_s, mode="markers", marker={"size": 4, "color": colour(2)}, name="")
    longest_s = float(max(recorded_s.max(), replayed_s.max()))
    figure.add_scatter(x=[0, longest_s], y=[0, longest_s], mode="lines", line={"color": colour(0)}, name="ideal")
    return figure.update_layout(showlegend=False)


def _distributions(replay: Replay) -> go.Figure:
    figure = plot("Requests finished within a time to last token", "TTLT, s", "share of requests")
    share = np.linspace(0.0, 1.0, CDF_POINTS)
    for name, served, shade in _rows(replay):
        figure.add_scatter(x=np.quantile(served.ttlt_s, share), y=share, name=name, mode="lines", line={"color": shade})
    return figure.update_xaxes(type="log")


def _mean_against_tail(replay: Replay) -> go.Figure:
    figure = plot("Mean against tail", "mean TTLT, s", "P99 TTLT, s")
    for name, served, shade in _rows(replay):
        figure.add_scatter(
            x=[served.figures.mean_ttlt_s],
            y=[served.figures.p99_ttlt_s],
            name=name,
            text=[name],
            mode="markers+text",
            textposition="top center",
            marker={"size": 12, "color": shade},
        )
    return figure.update_xaxes(rangemode="tozero").update_yaxes(rangemode="tozero")


def _rows(replay: Replay) -> Iterator[tuple[str, Served, str]]:
    served = {AS_IT_RAN: replay.reproduced, **replay.policies}
    for number, (name, one) in enumerate(served.items()):
        yield name, one, colour(number)
