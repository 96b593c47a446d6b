"""Report of a benchmark: a table for the terminal and a page with plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import plotly.graph_objects as go
from rich.table import Table

from controller.benchmark.scheduling.plots import busiest, gain_plots, run_plots
from controller.benchmark.scheduling.result import BenchResult, Spread
from controller.benchmark.scheduling.service_report import service_headings, service_rows
from controller.reports.latency_summary import PolicyFigures
from controller.reports.page import heading, write_page
from controller.reports.tables import COLUMNS, html_table, text_table


def bench_table(result: BenchResult, against: str | None = None) -> Table:
    """One row for each policy; lower TTLT is better, and the best of a column is bold.

    With several seeds the table has means, for the main figures also the lowest and highest;
    ``against`` adds each policy's ratio to that one, computed seed by seed.
    """
    table = text_table(describe(result), headings(result, against), left=1)
    best = {name: min(float(getattr(f, name)) for f in result.figures.values()) for name in _LOWER_IS_BETTER}
    for policy, figures in result.figures.items():
        cells = cells_of(result, policy, against)
        marked = [
            f"[bold]{cell}[/bold]" if best.get(name) == getattr(figures, name) else cell
            for cell, (name, _, _) in zip(cells[: len(COLUMNS)], COLUMNS, strict=True)
        ]
        table.add_row(policy, *marked, *cells[len(COLUMNS) :])
    return table


def bench_verdict(result: BenchResult) -> str | None:
    """One sentence that says what our order gained over first come, first served; None unless both ran."""
    if not {"sage", "fcfs"} <= set(result.figures):
        return None
    changes = [
        f"{what} {_change(result.ratio('sage', 'fcfs', name).mean)}"
        for name, what in (("mean_ttlt_s", "mean E2E latency"), ("p99_ttlt_s", "P99"), ("mean_ttft_s", "mean TTFT"))
    ]
    line = f"sage against fcfs: {', '.join(changes)}"
    fcfs = result.figures["fcfs"]
    if fcfs.mean_ttft_s < _QUEUES_FROM * fcfs.mean_ttlt_s:
        line += "; requests hardly wait at this load, so that an order changes little: try a higher --load"
    return line


def _change(ratio: float) -> str:
    return "unchanged" if round(100.0 * (ratio - 1.0)) == 0 else f"{ratio - 1.0:+.0%}"


def headings(result: BenchResult, against: str | None) -> list[str]:
    """The table's headings."""
    ratios = [f"{name} / {against}" for _, name in _RATIOS] if against else []
    tuned = ["watermark"] if result.spec.tuned else []
    return ["policy", *(title for _, title, _ in COLUMNS), *tuned, *ratios]


def cells_of(result: BenchResult, policy: str, against: str | None) -> list[str]:
    """A policy's row as text, without its name."""
    cells = [_cell(result, policy, name, form) for name, _, form in COLUMNS]
    if result.spec.tuned:
        cells.append(" ".join(f"{figures.watermark:g}" for figures in result.by_seed(policy)))
    if against:
        cells += [_spread_text(result.ratio(policy, against, name), "{:.2f}") for name, _ in _RATIOS]
    return cells


def describe(result: BenchResult) -> str:
    """One line that names workload, profile, engine and load."""
    spec = result.spec
    rate = spec.load * result.capacity_rps
    seeds = ",".join(str(seed) for seed in spec.seeds)
    left_out = f", {result.left_out_share:.0%} of the rows too long and left out" if result.left_out_share else ""
    return (
        f"{result.workload} on {spec.profile} ({spec.engine}, prefix caching {'on' if spec.prefix_caching else 'off'}): "
        f"{result.requests} requests{left_out}, arrivals {spec.arrivals}, load {spec.load:g} of {'tuned' if spec.tuned else 'stock'} FCFS = {rate:.2f}/s, "
        f"{'seed' if len(spec.seeds) == 1 else 'seeds'} {seeds}, "
        f"baselines {'at their best static watermark' if spec.tuned else 'on defaults'}"
    )


def write_html(results: Sequence[BenchResult], path: Path, against: str | None = None) -> None:
    """Write a self-contained page: gain against load, and details of each profile's highest load.

    The details are the table, TTLT distributions, mean against P99, and queue and KV memory over time.
    """
    parts: list[str | go.Figure] = list(gain_plots(results, against)) if against else []
    shown = busiest(results)
    for result in shown:
        parts += [heading(describe(result)), *_html_tables(result, against), *run_plots(result)]
    for result in results:
        if result not in shown:
            parts += [heading(describe(result)), *_html_tables(result, against)]
    spec = results[0].spec
    workloads = ", ".join(dict.fromkeys(str(result.workload) for result in results))
    verdicts = " ".join(f"Load {result.spec.load:g}, {line}." for result in shown if (line := bench_verdict(result)))
    about = (
        "Lower is better. Where several seeds ran: the mean, and the lowest and highest; ratios are taken seed by seed."
    )
    title = f"{', '.join(spec.policies)} on {workloads}"
    write_page(path, title=title, about=f"{verdicts} {about}".strip(), parts=parts)


_LOWER_IS_BETTER = tuple(
    field.name for field in fields(PolicyFigures) if field.name.endswith(("ttlt_s", "ttft_s", "tpot_s"))
)
_QUEUES_FROM = 0.05
"""Mean TTFT over mean TTLT below which hardly anything waits."""
_RATIOS = (("mean_ttlt_s", "mean TTLT"), ("p99_ttlt_s", "P99"))
_WITH_SPREAD = ("mean_ttlt_s", "p99_ttlt_s")


def _cell(result: BenchResult, policy: str, name: str, form: str) -> str:
    spread = result.spread(policy, name)
    return _spread_text(spread, form) if name in _WITH_SPREAD else form.format(spread.mean)


def _spread_text(spread: Spread, form: str) -> str:
    if spread.lowest == spread.highest:
        return form.format(spread.mean)
    return f"{form.format(spread.mean)} ({form.format(spread.lowest)}-{form.format(spread.highest)})"


def _html_tables(result: BenchResult, against: str | None) -> list[str]:
    rows = ([policy, *cells_of(result, policy, against)] for policy in result.figures)
    latencies = html_table(headings(result, against), rows)
    if result.spec.mix is None:
        return [latencies]
    return [latencies, html_table(service_headings(result), service_rows(result))]
