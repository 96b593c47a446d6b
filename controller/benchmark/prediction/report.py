"""The evaluation for people who look at plots: one page that stands on its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from controller.benchmark.prediction.study import (
    COLUMNS,
    MAIN_LEARNER,
    LearnerRecord,
    Study,
    TaskQuality,
    task_qualities,
)
from controller.benchmark.scheduling.plots import COLOURS
from controller.benchmark.scheduling.report import PAGE
from online_learning.calibration.scoring import PIT_BINS
from store.history.atomic_file import write_whole

SCATTER_POINTS = 3_000
COMPARED = (MAIN_LEARNER, "global", "sagesched-paper")
"""Learners whose PIT histograms stand side by side."""


def write_html(study: Study, path: Path) -> None:
    """Write the figures as tables, and plots of reliability, PIT, scores, coverage by task, and lengths."""
    qualities = task_qualities(study)
    plots = [
        _reliability(study),
        _pit_histograms(study),
        _scores(study, "crps_tokens", "CRPS: lower is better", "tokens"),
        _scores(study, "log_score", "Log score: higher is better", "nats"),
        *([_coverage_by_task(qualities)] if qualities else []),
        _predicted_against_actual(study),
    ]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, default_height="420px")
        for number, figure in enumerate(plots)
    ]
    page = PAGE.format(
        title="Length predictions, learner by learner",
        about=escape(f"{study.workload}: {study.result.requests} requests, each predicted before it was learnt from"),
        table=_quality_html(study) + _tasks_html(qualities),
        plots="".join(parts),
    )
    write_whole(path, page)


def reliability(record: LearnerRecord) -> tuple[list[float], list[float]]:
    """Nominal probabilities, and the share of answers not longer than the belief's quantile at each.

    The diagonal is perfect; above it answers are shorter than believed, below it longer.
    """
    nominal = np.linspace(0.0, 1.0, 41)
    transforms = np.sort(record.of("pit"))
    observed = np.searchsorted(transforms, nominal, side="right") / max(1, transforms.size)
    return nominal.tolist(), observed.tolist()


def _reliability(study: Study) -> go.Figure:
    figure = _figure("Reliability: how often an answer was within a quantile", "quantile", "share of answers")
    figure.add_scatter(x=[0, 1], y=[0, 1], name="perfect", mode="lines", line={"dash": "dash", "color": "#9ca3af"})
    for number, (name, record) in enumerate(study.records.items()):
        nominal, observed = reliability(record)
        figure.add_scatter(x=nominal, y=observed, name=name, mode="lines", line={"color": _colour(number)})
    return figure


def _pit_histograms(study: Study) -> go.Figure:
    figure = _figure(
        "PIT: level is calibrated, ends raised is too sure, a hump too cautious", "PIT", "share of answers"
    )
    centres = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    for number, name in enumerate(COMPARED):
        counts = np.histogram(study.records[name].of("pit"), bins=PIT_BINS, range=(0.0, 1.0))[0]
        figure.add_bar(x=centres, y=counts / max(1, counts.sum()), name=name, marker={"color": _colour(number)})
    figure.add_hline(y=1.0 / PIT_BINS, line={"dash": "dash", "color": "#9ca3af"})
    return figure


def _scores(study: Study, name: str, title: str, unit: str) -> go.Figure:
    figure = _figure(title, "", unit)
    values = [getattr(quality, name) for quality in study.result.learners.values()]
    colours = [_colour(number) for number in range(len(values))]
    figure.add_bar(
        x=list(study.result.learners), y=values, marker={"color": colours}, text=[f"{value:.3g}" for value in values]
    )
    return figure


def _coverage_by_task(qualities: list[TaskQuality]) -> go.Figure:
    figure = _figure(f"Coverage of {MAIN_LEARNER} by task: dashed is nominal", "", "share of answers")
    tasks = [f"{quality.task} ({quality.requests})" for quality in qualities]
    for number, (name, nominal) in enumerate((("coverage_50", 0.5), ("coverage_90", 0.9))):
        heights = [getattr(quality, name) for quality in qualities]
        figure.add_bar(x=tasks, y=heights, name=f"central {nominal:.0%}", marker={"color": _colour(number)})
        figure.add_hline(y=nominal, line={"dash": "dash", "color": _colour(number)})
    figure.update_yaxes(range=[0.0, 1.0])
    return figure


def _predicted_against_actual(study: Study) -> go.Figure:
    record = study.records[MAIN_LEARNER]
    figures = record.figures[:: max(1, -(-len(record.figures) // SCATTER_POINTS))]
    shown = LearnerRecord(figures)
    predicted, actual = shown.of("p50_tokens"), shown.of("output_tokens")
    inside = (shown.of("p10_tokens") <= actual) & (actual <= shown.of("p90_tokens"))
    figure = _figure(f"Median of {MAIN_LEARNER} against what came", "predicted median, tokens", "answer, tokens")
    for number, (name, chosen) in enumerate((("within p10 to p90", inside), ("outside", ~inside))):
        marker = {"size": 4, "opacity": 0.5, "color": _colour(number + 1)}
        figure.add_scattergl(x=predicted[chosen], y=actual[chosen], name=name, mode="markers", marker=marker)
    longest = float(max(predicted.max(initial=1.0), actual.max(initial=1.0)))
    line = {"dash": "dash", "color": "#9ca3af"}
    figure.add_scatter(x=[1, longest], y=[1, longest], name="as predicted", mode="lines", line=line)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def _quality_html(study: Study) -> str:
    rows = [
        (name, *(form.format(getattr(quality, column)) for column, _, form in COLUMNS))
        for name, quality in study.result.learners.items()
    ]
    return _table(("learner", *(heading for _, heading, _ in COLUMNS)), rows)


def _tasks_html(qualities: list[TaskQuality]) -> str:
    if not qualities:
        return ""
    rows = [
        (
            quality.task,
            str(quality.requests),
            f"{quality.coverage_50:.3f}",
            f"{quality.coverage_90:.3f}",
            f"{quality.kendall_tau:.3f}",
            f"{quality.crps_tokens:.1f}",
            f"{quality.paper_crps_tokens:.1f}",
        )
        for quality in qualities
    ]
    headings = ("task", "requests", "within 50 %", "within 90 %", "Kendall τ", "CRPS tokens", "the paper's")
    return f"<h2>{escape(MAIN_LEARNER)} by task</h2>" + _table(headings, rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(title: str, x_title: str, y_title: str) -> go.Figure:
    axes = {"xaxis": {"title": x_title}, "yaxis": {"title": y_title}}
    return go.Figure(layout={"title": title, "template": "plotly_white", "barmode": "group", **axes})


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
