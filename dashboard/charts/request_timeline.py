"""Charts of one request's timeline: pure functions from its facts to Plotly figures, in the manner of `dashboard.charts.figures`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from dashboard.charts import palette
from dashboard.charts.figures import base, or_blank
from store.http_requests import Choice, RequestTimeline, Wait

CAUSES = {
    "gate": ("room reserved for running requests", palette.AMBER),
    "memory": ("KV memory full", palette.RED),
    "slots": ("batch full (max_num_seqs)", palette.VIOLET),
    "step": ("the current step", palette.GREY),
}


class Phase(NamedTuple):
    """A part of a timeline, in seconds since the arrival."""

    name: str
    start_s: float
    end_s: float


def phases(timeline: RequestTimeline) -> list[Phase]:
    """Waiting, prompt, generating, and the times after a preemption, in order and without overlap."""
    end_s = timeline.until_s - timeline.arrival_s
    started_s = end_s if timeline.started_s is None else timeline.started_s - timeline.arrival_s
    first_s = end_s if timeline.first_token_s is None else timeline.first_token_s - timeline.arrival_s
    found = [Phase("waiting", 0.0, started_s), Phase("prompt", started_s, first_s), Phase("generating", first_s, end_s)]
    for away in _absences(timeline, end_s):
        found = [part for phase in found for part in _without(phase, away)] + [away]
    return sorted((phase for phase in found if phase.end_s > phase.start_s), key=lambda phase: phase.start_s)


def _absences(timeline: RequestTimeline, end_s: float) -> list[Phase]:
    back = [moment.time_s for moment in timeline.moments if moment.attained_tokens is not None]
    spans = [(loss.time_s, next((time_s for time_s in back if time_s > loss.time_s), None)) for loss in timeline.losses]
    return [
        Phase("preempted", since_s - timeline.arrival_s, end_s if back_s is None else back_s - timeline.arrival_s)
        for since_s, back_s in spans
    ]


def _without(phase: Phase, away: Phase) -> list[Phase]:
    """A phase without the time of an absence."""
    before = Phase(phase.name, phase.start_s, min(phase.end_s, away.start_s))
    after = Phase(phase.name, max(phase.start_s, away.end_s), phase.end_s)
    return [part for part in (before, after) if part.end_s > part.start_s]


def bars(timeline: RequestTimeline) -> go.Figure:
    """The timeline as bars, with what happened to it as marks."""
    figure = base("")
    colours = {
        "waiting": palette.AMBER,
        "prompt": palette.GREEN,
        "generating": palette.BLUE,
        "preempted": palette.VIOLET,
    }
    lived = phases(timeline)
    for name, colour in colours.items():
        shown = [phase for phase in lived if phase.name == name]
        figure.add_bar(
            y=["timeline"] * len(shown),
            base=[phase.start_s for phase in shown],
            x=[phase.end_s - phase.start_s for phase in shown],
            orientation="h",
            name=name,
            marker_color=colour,
            hovertemplate="%{fullData.name}: %{x:.3g} s<extra></extra>",
            visible=True if shown else "legendonly",
            showlegend=bool(shown),
        )
    for name, times_s, symbol in _marks(timeline):
        figure.add_scatter(
            x=[time_s - timeline.arrival_s for time_s in times_s],
            y=["events"] * len(times_s),
            mode="markers",
            name=name,
            cliponaxis=False,
            marker={"symbol": symbol, "size": 11, "color": palette.GREY},
            hovertemplate="%{fullData.name} at %{x:.3g} s<extra></extra>",
        )
    figure.update_layout(barmode="overlay", hovermode="closest", height=220)
    figure.update_xaxes(title="seconds since arrival", rangemode="tozero")
    figure.update_yaxes(categoryorder="array", categoryarray=["events", "timeline"], range=[-0.5, 1.5])
    return or_blank(figure, lived, "It has just arrived")


def _marks(timeline: RequestTimeline) -> list[tuple[str, list[float], str]]:
    marks = [
        ("index decided", [choice.time_s for choice in timeline.choices], "diamond"),
        ("preemption", [loss.time_s for loss in timeline.losses], "x"),
        (
            "settings changed",
            [order.time_s for order in timeline.orders if order.time_s > timeline.arrival_s],
            "triangle-up",
        ),
        ("drift of the cluster", [shift.time_s for shift in timeline.shifts], "star"),
    ]
    return [mark for mark in marks if mark[1]]


def distribution(timeline: RequestTimeline) -> go.Figure:
    """Predicted distribution of its length, as a cumulative share, with the actual length."""
    figure = base("share of answers")
    predicted = timeline.predicted
    if predicted is not None:
        tokens = [max(1, quantile) for _, quantile in predicted.quantiles]
        shares = [probability for probability, _ in predicted.quantiles]
        figure.add_scatter(
            x=tokens,
            y=shares,
            mode="lines+markers",
            name="predicted",
            line={"color": palette.BLUE, "width": 2},
            marker={"size": 7},
            hovertemplate="%{y:.0%} are at most %{x:,} tokens<extra></extra>",
        )
        attained = attained_tokens(timeline)
        if attained:
            _upright(figure, attained, _came(timeline), palette.AMBER)
    figure.update_xaxes(title="output tokens", type="log", dtick=1)
    figure.update_yaxes(tickformat=".0%", range=[0.0, 1.02])
    figure.update_layout(hovermode="closest")
    return or_blank(figure, [predicted] if predicted else [], "No prediction is on record")


def index(timeline: RequestTimeline) -> go.Figure:
    """Its index by the tokens attained: as first decided, and as last."""
    figure = base("index (engine-seconds)")
    shown = [("decided last", timeline.choices[-1], palette.BLUE)] if timeline.choices else []
    if len(timeline.choices) > 1:
        shown.insert(0, ("decided on arrival", timeline.choices[0], palette.GREY))
    for name, choice, colour in shown:
        figure.add_scatter(
            x=[*choice.attained_tokens, timeline.max_tokens],
            y=[*choice.table_index_s, choice.table_index_s[-1]],
            mode="lines",
            name=name,
            line_shape="hv",
            line={"color": colour, "width": 2},
            hovertemplate="from %{x:,} tokens on: %{y:.3g} s<extra></extra>",
        )
    attained = attained_tokens(timeline)
    if shown and attained is not None:
        figure.add_scatter(
            x=[attained],
            y=[index_at(shown[-1][1], attained)],
            mode="markers",
            name=_came(timeline),
            marker={"color": palette.AMBER, "size": 11},
            hovertemplate="%{x:,} tokens: %{y:.3g} s<extra></extra>",
        )
    figure.update_xaxes(title="output tokens attained", rangemode="tozero")
    figure.update_layout(hovermode="closest")
    return or_blank(figure, shown, "No index table was decided")


def queue(timeline: RequestTimeline) -> go.Figure:
    """How many stood before it in the queue, over its timeline."""
    figure = base("requests before it")
    seen = [moment for moment in timeline.moments if moment.time_s >= timeline.arrival_s]
    figure.add_scatter(
        x=[moment.time_s - timeline.arrival_s for moment in seen],
        y=[moment.ahead for moment in seen],
        mode="lines",
        name="before it in the queue",
        line={"color": palette.AMBER, "width": 2, "shape": "hv"},
        connectgaps=False,
        hovertemplate="%{y:,} before it at %{x:.3g} s<extra></extra>",
    )
    figure.update_xaxes(title="seconds since arrival", rangemode="tozero")
    figure.update_layout(hovermode="closest", showlegend=False)
    return or_blank(figure, [m for m in seen if m.ahead is not None], "No snapshot shows it in the queue")


def waits(parts: Sequence[Wait]) -> go.Figure:
    """The wait for its first place by what held the queue."""
    figure = base("")
    for cause, (name, colour) in CAUSES.items():
        spans_s = [
            sum(part.span_s for part in parts if part.cause == cause and part.behind == behind)
            for behind in (False, True)
        ]
        if sum(spans_s):
            figure.add_bar(
                y=["at the head of the queue", "behind others"],
                x=spans_s,
                orientation="h",
                name=name,
                marker_color=colour,
                hovertemplate="%{fullData.name}: %{x:.3g} s<extra></extra>",
            )
    figure.update_layout(barmode="stack", hovermode="closest")
    figure.update_xaxes(title="seconds")
    return or_blank(figure, parts, "It did not wait, or no snapshot shows it")


def attained_tokens(timeline: RequestTimeline) -> int | None:
    """Output tokens at its end or when it was last seen running; None when it never ran."""
    if timeline.output_tokens is not None:
        return timeline.output_tokens
    seen = [moment.attained_tokens for moment in timeline.moments if moment.attained_tokens is not None]
    return seen[-1] if seen else None


def index_at(choice: Choice, attained: int) -> float:
    """Return a table's index at ``attained`` tokens."""
    return choice.table_index_s[bisect_right(choice.attained_tokens, attained) - 1]


def _came(timeline: RequestTimeline) -> str:
    return "so far" if timeline.finished_s is None else "actual" if timeline.reason == "stop" else "truncated at"


def _upright(figure: go.Figure, tokens: int, name: str, colour: str) -> None:
    figure.add_scatter(
        x=[tokens, tokens],
        y=[0.0, 1.0],
        mode="lines",
        name=f"{name}: {tokens:,}",
        line={"color": colour, "width": 2},
        hovertemplate=f"{name}: {tokens:,} tokens<extra></extra>",
    )
