"""The evaluation as a self-contained page of tables and plots."""

from __future__ import annotations

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
from controller.reports.page import colour, heading, plot, write_page
from controller.reports.tables import html_table
from online_learning.calibration.scoring import PIT_BINS

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
    write_page(
        path,
        title="Length predictions, learner by learner",
        about=f"{study.workload}: {study.result.requests} requests, each predicted before it was learned from",
        parts=[_quality_html(study), _tasks_html(qualities), *plots],
    )


def reliability(record: LearnerRecord) -> tuple[list[float], list[float]]:
    """Nominal probabilities, and the share of answers not longer than the predicted quantile at each.

    The diagonal is perfect; above it answers are shorter than predicted, below it longer.
    """
    nominal = np.linspace(0.0, 1.0, 41)
    transforms = np.sort(record.of("pit"))
    observed = np.searchsorted(transforms, nominal, side="right") / max(1, transforms.size)
    return nominal.tolist(), observed.tolist()


def _reliability(study: Study) -> go.Figure:
    figure = plot("Reliability: how often an answer was within a quantile", "quantile", "share of answers")
    figure.add_scatter(x=[0, 1], y=[0, 1], name="perfect", mode="lines", line={"dash": "dash", "color": "#9ca3af"})
    for number, (name, record) in enumerate(study.records.items()):
        nominal, observed = reliability(record)
        figure.add_scatter(x=nominal, y=observed, name=name, mode="lines", line={"color": colour(number)})
    return figure


def _pit_histograms(study: Study) -> go.Figure:
    figure = plot("PIT: level is calibrated, ends raised is too sure, a hump too cautious", "PIT", "share of answers")
    centres = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    for number, name in enumerate(COMPARED):
        counts = np.histogram(study.records[name].of("pit"), bins=PIT_BINS, range=(0.0, 1.0))[0]
        figure.add_bar(x=centres, y=counts / max(1, counts.sum()), name=name, marker={"color": colour(number)})
    figure.add_hline(y=1.0 / PIT_BINS, line={"dash": "dash", "color": "#9ca3af"})
    return figure


def _scores(study: Study, name: str, title: str, unit: str) -> go.Figure:
    figure = plot(title, "", unit)
    values = [getattr(quality, name) for quality in study.result.learners.values()]
    colours = [colour(number) for number in range(len(values))]
    figure.add_bar(
        x=list(study.result.learners), y=values, marker={"color": colours}, text=[f"{value:.3g}" for value in values]
    )
    return figure


def _coverage_by_task(qualities: list[TaskQuality]) -> go.Figure:
    figure = plot(f"Coverage of {MAIN_LEARNER} by task: dashed is nominal", "", "share of answers")
    tasks = [f"{quality.task} ({quality.requests})" for quality in qualities]
    for number, (name, nominal) in enumerate((("coverage_50", 0.5), ("coverage_90", 0.9))):
        heights = [getattr(quality, name) for quality in qualities]
        figure.add_bar(x=tasks, y=heights, name=f"central {nominal:.0%}", marker={"color": colour(number)})
        figure.add_hline(y=nominal, line={"dash": "dash", "color": colour(number)})
    figure.update_yaxes(range=[0.0, 1.0])
    return figure


def _predicted_against_actual(study: Study) -> go.Figure:
    record = study.records[MAIN_LEARNER]
    figures = record.figures[:: max(1, -(-len(record.figures) // SCATTER_POINTS))]
    shown = LearnerRecord(figures)
    predicted, actual = shown.of("p50_tokens"), shown.of("output_tokens")
    inside = (shown.of("p10_tokens") <= actual) & (actual <= shown.of("p90_tokens"))
    figure = plot(f"Median of {MAIN_LEARNER} against what came", "predicted median, tokens", "answer, tokens")
    for number, (name, chosen) in enumerate((("within p10 to p90", inside), ("outside", ~inside))):
        marker = {"size": 4, "opacity": 0.5, "color": colour(number + 1)}
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
    return html_table(("learner", *(title for _, title, _ in COLUMNS)), rows)


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
    headings = ("task", "requests", "within 50%", "within 90%", "Kendall τ", "CRPS tokens", "the paper's")
    return heading(f"{MAIN_LEARNER} by task") + html_table(headings, rows)
