"""The plots of a benchmark's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from controller.benchmark.scheduling.result import BenchResult
from controller.benchmark.scheduling.run import Moment
from controller.reports.page import CDF_POINTS, colour, plot

GAINS = (("mean_ttlt_s", "mean TTLT"), ("p99_ttlt_s", "P99 TTLT"))


def busiest(results: Sequence[BenchResult]) -> list[BenchResult]:
    """The result at the highest load of each profile."""
    highest: dict[str, BenchResult] = {}
    for result in sorted(results, key=lambda result: result.spec.load):
        highest[result.spec.profile] = result
    return list(highest.values())


def gain_plots(results: Sequence[BenchResult], against: str) -> list[go.Figure]:
    """The ratio to a policy against the load for each profile and figure, with its range over the seeds."""
    profiles = list(dict.fromkeys(result.spec.profile for result in results))
    return [
        _gain(
            [result for result in results if result.spec.profile == profile], against, figure, f"{title} on {profile}"
        )
        for profile in profiles
        for figure, title in GAINS
    ]


def run_plots(result: BenchResult) -> list[go.Figure]:
    """Plots of one load: distributions over all seeds, and the first seed over time."""
    return [
        _ttlt_distributions(result),
        _mean_against_tail(result),
        _over_time(result, "Waiting requests", "requests", lambda moment: moment.waiting),
        _over_time(result, "KV cache in use", "share of blocks", lambda moment: moment.kv_share),
    ]


def _gain(results: list[BenchResult], against: str, name: str, title: str) -> go.Figure:
    load_of = "tuned" if results[0].spec.tuned else "stock"
    figure = plot(
        f"{title}, relative to {against}", f"load, relative to the capacity of {load_of} FCFS", "ratio, lower is better"
    )
    ordered = sorted(results, key=lambda result: result.spec.load)
    for number, policy in enumerate(ordered[0].spec.policies):
        ratios = [result.ratio(policy, against, name) for result in ordered]
        figure.add_scatter(
            x=[result.spec.load for result in ordered],
            y=[ratio.mean for ratio in ratios],
            error_y={
                "type": "data",
                "array": [ratio.highest - ratio.mean for ratio in ratios],
                "arrayminus": [ratio.mean - ratio.lowest for ratio in ratios],
            },
            name=policy,
            mode="lines+markers",
            line=_line(number),
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def _ttlt_distributions(result: BenchResult) -> go.Figure:
    figure = plot("Requests finished within a time to last token, all seeds", "TTLT, s", "share of requests")
    share = np.linspace(0.0, 1.0, CDF_POINTS)
    for number, policy in enumerate(result.spec.policies):
        ttlt_s = [request.ttlt_s for seed in result.seeds for request in seed.policies[policy].best.completed]
        figure.add_scatter(x=np.quantile(ttlt_s, share), y=share, name=policy, mode="lines", line=_line(number))
    figure.update_xaxes(type="log")
    return figure


def _mean_against_tail(result: BenchResult) -> go.Figure:
    figure = plot("Mean against tail", "mean TTLT, s", "P99 TTLT, s")
    for number, (policy, figures) in enumerate(result.figures.items()):
        figure.add_scatter(
            x=[figures.mean_ttlt_s],
            y=[figures.p99_ttlt_s],
            name=policy,
            text=[policy],
            mode="markers+text",
            textposition="top center",
            marker={"size": 12, "color": colour(number)},
        )
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _over_time(result: BenchResult, title: str, y_title: str, value: Callable[[Moment], float]) -> go.Figure:
    figure = plot(f"{title}, seed {result.seeds[0].seed}", "virtual time, s", y_title)
    for number, (policy, run) in enumerate(result.runs.items()):
        times_s = [moment.time_s for moment in run.timeline]
        values = [value(moment) for moment in run.timeline]
        figure.add_scatter(x=times_s, y=values, name=policy, mode="lines", line=_line(number))
    figure.update_yaxes(rangemode="tozero")
    return figure


def _line(number: int) -> dict[str, object]:
    return {"color": colour(number), "width": 1.8}
