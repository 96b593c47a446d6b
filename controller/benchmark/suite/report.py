"""Tables and page of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go
from rich.table import Table

from controller.benchmark.suite.measured import Measured, mean_of, ratio
from controller.benchmark.suite.suite import SHOWN, SuiteResult
from controller.benchmark.suite.targets import DOMINATED_BELOW, Check, checks, domination, over_best
from controller.reports.page import colour, heading, plot, write_page
from controller.reports.tables import html_table, text_table

ABOUT = (
    "SageSched's default over every baseline: means over the seeds of ratios seed by seed; below 1 SageSched is better, "
    "except in tokens/s. A baseline dominates where its mean and its P99 of TTLT are both lower by more than 3%."
)


def case_table(measured: Measured) -> Table:
    """The ratios of a case, one row for each baseline, and the figures of our default in the first row."""
    table = text_table(describe(measured), ["SageSched over", *_HEADINGS], left=1)
    for row in _case_rows(measured):
        table.add_row(*row)
    return table


def case_line(measured: Measured) -> str:
    """One line that says who comes closest to dominating us, and which targets are missed."""
    closest, whose = domination(measured.default, measured.baselines)
    dominated = closest > 1.0 / DOMINATED_BELOW
    missed = [
        f"{check.name} {_value(check)} ({check.sense} {_limit(check)})"
        for check in checks(measured)
        if not check.passed
    ]
    who = (
        f"DOMINATED by {whose} ({closest:.2f})"
        if dominated
        else f"not dominated ({whose} comes closest, {closest:.2f})"
    )
    return f"{measured.name}: {who}; " + ("missed: " + ", ".join(missed) if missed else "all targets are met")


def summary_table(result: SuiteResult) -> Table:
    """One row for each case: the default over stock, the best baseline and the paper, and how many targets are missed."""
    table = text_table("our default, case by case", _SUMMARY_HEADINGS, left=1)
    for measured in result.measured:
        table.add_row(*_summary_row(measured))
    return table


def worst_table(result: SuiteResult) -> Table:
    """The worst case of each target."""
    table = text_table("worst of each target", _WORST_HEADINGS, left=1)
    for row in _worst_rows(result):
        table.add_row(*row)
    return table


def describe(measured: Measured) -> str:
    """One line that names the case."""
    case = measured.case
    load = f", load {case.load:g}" if case.has_load else ""
    return f"{measured.name}: {case.workload} on {case.profile} ({measured.engine}), {case.requests} requests, arrivals {case.arrivals}{load}"


def write_html(result: SuiteResult, path: Path) -> None:
    """Write a self-contained page: the worst of each target, ratios against the load, and every case."""
    parts: list[str | go.Figure] = [
        heading("Worst of each target"),
        html_table(_WORST_HEADINGS, _worst_rows(result)),
        heading("Case by case"),
        html_table(_SUMMARY_HEADINGS, map(_summary_row, result.measured)),
        *_plots(result),
    ]
    for measured in result.measured:
        parts += [
            heading(describe(measured)),
            html_table(["SageSched over", *_HEADINGS], _case_rows(measured)),
            html_table(_CHECK_HEADINGS, _check_rows(measured)),
        ]
    write_page(path, title="The suite: our schedule on every kind of traffic", about=ABOUT, parts=parts)


_HEADINGS = [*(title for _, title in SHOWN), "recomputed"]
_CHECK_HEADINGS = ["target", "found", "limit", "against", ""]
_WORST_HEADINGS = ["target", "worst", "limit", "case", "against", "missed"]


_SUMMARY_HEADINGS = [
    "case",
    *("mean / FCFS", "P99 / FCFS", "tokens/s / FCFS"),
    *("mean / best", "closest baseline", "its lower ratio"),
    *("P50 / paper", "P99 / paper", "longest / paper"),
    *("recomputed", "missed"),
]


def _summary_row(measured: Measured) -> list[str]:
    ours, stock, paper = measured.default, measured.stock, measured.paper
    over_stock = (ratio(ours, stock, figure) for figure in ("mean_ttlt_s", "p99_ttlt_s", "throughput_tokens_per_s"))
    best, _ = over_best(ours, measured.baselines, "mean_ttlt_s")
    closest, whose = domination(ours, measured.baselines)
    over_paper = (ratio(ours, paper, figure) for figure in ("p50_ttlt_s", "p99_ttlt_s", "max_ttlt_s"))
    missed = sum(not check.passed for check in checks(measured))
    return [
        measured.name,
        *(f"{value:.2f}" for value in over_stock),
        *(f"{best:.2f}", whose, f"{closest:.2f}"),
        *(f"{value:.2f}" for value in over_paper),
        *(f"{mean_of(ours, 'recompute_tax'):.1%}", str(missed)),
    ]


def _case_rows(measured: Measured) -> Iterator[list[str]]:
    ours = measured.default
    figures = [f"{mean_of(ours, figure):.{0 if figure.endswith('per_s') else 2}f}" for figure, _ in SHOWN]
    yield ["(SageSched, s)", *figures, f"{mean_of(ours, 'recompute_tax'):.1%}"]
    for name, theirs in measured.baselines.items():
        ratios = [f"{ratio(ours, theirs, figure):.2f}" for figure, _ in SHOWN]
        yield [name, *ratios, f"{mean_of(theirs, 'recompute_tax'):.1%}"]


def _check_rows(measured: Measured) -> Iterator[list[str]]:
    for check in checks(measured):
        state = "" if check.passed else "missed"
        yield [check.name, _value(check), f"{check.sense} {_limit(check)}", check.against or "", state]


def _worst_rows(result: SuiteResult) -> Iterator[list[str]]:
    for worst in result.worst:
        check = worst.check
        missed = f"{worst.failed} of {worst.of}" if worst.failed else "0"
        note = "" if result.decides(check) else " (does not decide)"
        yield [
            check.name + note,
            _value(check),
            f"{check.sense} {_limit(check)}",
            worst.case,
            check.against or "",
            missed,
        ]


def _value(check: Check) -> str:
    return f"{check.value:.1%}" if check.name == "recompute tax" else f"{check.value:.3f}"


def _limit(check: Check) -> str:
    return f"{check.limit:.0%}" if check.name == "recompute tax" else f"{check.limit:.3g}"


def _plots(result: SuiteResult) -> Iterator[go.Figure]:
    """Mean and 99th percentile relative to every baseline against the load, for each group of cases with several loads."""
    groups: dict[str, list[Measured]] = {}
    for one in result.measured:
        groups.setdefault(f"{one.case.group} ({one.engine})", []).append(one)
    for name, members in groups.items():
        if len(members) > 1:
            yield _plot(f"Mean TTLT, SageSched over each baseline, {name}", members, "mean_ttlt_s")
            yield _plot(f"P99 TTLT, SageSched over each baseline, {name}", members, "p99_ttlt_s")


def _plot(title: str, members: list[Measured], figure_name: str) -> go.Figure:
    figure = plot(title, "load, relative to the capacity of stock FCFS", "ratio, lower is better")
    for number, baseline in enumerate(members[0].best):
        figure.add_scatter(
            x=[one.case.load for one in members],
            y=[ratio(one.default, one.best[baseline], figure_name) for one in members],
            name=baseline,
            mode="lines+markers",
            line={"color": colour(number)},
        )
    figure.update_yaxes(rangemode="tozero")
    return figure
