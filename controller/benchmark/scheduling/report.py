"""The benchmark's result for people: a table for the terminal and a page with plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from rich.table import Table

from controller.benchmark.scheduling.plots import busiest, gain_plots, run_plots
from controller.benchmark.scheduling.result import BenchResult, Spread
from controller.reports.latency_summary import PolicyFigures
from store.history.atomic_file import write_whole

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("mean_ttlt_s", "TTLT mean s", "{:.2f}"),
    ("p50_ttlt_s", "P50", "{:.2f}"),
    ("p90_ttlt_s", "P90", "{:.1f}"),
    ("p99_ttlt_s", "P99", "{:.1f}"),
    ("max_ttlt_s", "max", "{:.1f}"),
    ("mean_ttft_s", "TTFT mean s", "{:.2f}"),
    ("p99_ttft_s", "P99", "{:.1f}"),
    ("mean_tpot_s", "TPOT s", "{:.3f}"),
    ("throughput_tokens_per_s", "tokens/s", "{:.0f}"),
    ("makespan_s", "makespan s", "{:.0f}"),
    ("preemptions", "preemptions", "{:.0f}"),
    ("recompute_tax", "recomputed", "{:.1%}"),
    ("wall_s", "took s", "{:.1f}"),
)
"""Figure, heading, format."""

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #111827; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e5e7eb; }}
th:first-child, td:first-child {{ text-align: left; }}
</style></head>
<body><h1>{title}</h1><p>{about}</p>{table}{plots}</body></html>
"""


def bench_table(result: BenchResult, against: str | None = None) -> Table:
    """One row for each policy; lower TTLT is better, and the best of a column is bold.

    Of several seeds the table has means, and the lowest and highest where that matters most;
    ``against`` adds each policy's ratio to that one, which is taken seed by seed.
    """
    table = Table(title=describe(result))
    for heading in headings(result, against):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    best = {name: min(float(getattr(f, name)) for f in result.figures.values()) for name in _LOWER_IS_BETTER}
    for policy, figures in result.figures.items():
        cells = cells_of(result, policy, against)
        marked = [
            f"[bold]{cell}[/bold]" if best.get(name) == getattr(figures, name) else cell
            for cell, (name, _, _) in zip(cells[: len(COLUMNS)], COLUMNS, strict=True)
        ]
        table.add_row(policy, *marked, *cells[len(COLUMNS) :])
    return table


def headings(result: BenchResult, against: str | None) -> list[str]:
    """The table's headings."""
    ratios = [f"{heading} / {against}" for _, heading in _RATIOS] if against else []
    tuned = ["watermark"] if result.spec.tuned else []
    return ["policy", *(heading for _, heading, _ in COLUMNS), *tuned, *ratios]


def cells_of(result: BenchResult, policy: str, against: str | None) -> list[str]:
    """A policy's row as text, without its name."""
    cells = [_cell(result, policy, name, form) for name, _, form in COLUMNS]
    if result.spec.tuned:
        cells.append(" ".join(f"{figures.watermark:g}" for figures in result.by_seed(policy)))
    if against:
        cells += [_spread_text(result.ratio(policy, against, name), "{:.2f}") for name, _ in _RATIOS]
    return cells


def describe(result: BenchResult) -> str:
    """One line: what was served, on what, how hard."""
    spec = result.spec
    rate = spec.load * result.capacity_rps
    seeds = ",".join(str(seed) for seed in spec.seeds)
    left_out = f", {result.left_out_share:.0%} of the rows too long and left out" if result.left_out_share else ""
    return (
        f"{result.workload} on {spec.profile} ({spec.engine}, prefix caching {'on' if spec.caches_prefixes else 'off'}): "
        f"{result.requests} requests{left_out}, arrivals {spec.arrivals}, load {spec.load:g} of {'tuned' if spec.tuned else 'stock'} FCFS = {rate:.2f}/s, "
        f"{'seed' if len(spec.seeds) == 1 else 'seeds'} {seeds}, "
        f"rivals {'at their best static watermark' if spec.tuned else 'on defaults'}"
    )


def write_html(results: Sequence[BenchResult], path: Path, against: str | None = None) -> None:
    """Write a page that stands on its own: gain against load, and of each profile's highest load all that is known.

    That is the table, TTLT distributions, mean against P99, queue and KV over time.
    """
    gains = gain_plots(results, against) if against else []
    parts = [_html(plot, first=number == 0) for number, plot in enumerate(gains)]
    for place, result in enumerate(busiest(results)):
        parts.append(f"<h2>{escape(describe(result))}</h2>{_html_table(result, against)}")
        plots = enumerate(run_plots(result))
        parts += [_html(plot, first=not gains and place == number == 0) for number, plot in plots]
    others = [result for result in results if result not in busiest(results)]
    parts += [f"<h2>{escape(describe(result))}</h2>{_html_table(result, against)}" for result in others]
    about = "Where several seeds ran: the mean, and the lowest and highest; ratios are taken seed by seed."
    page = PAGE.format(title="Scheduling policies side by side", about=about, table="", plots="".join(parts))
    write_whole(path, page)


def _html(plot: go.Figure, *, first: bool) -> str:
    """A plot, the first of a page with the library."""
    return str(plot.to_html(full_html=False, include_plotlyjs=first, default_height="420px"))


_LOWER_IS_BETTER = tuple(
    field.name for field in fields(PolicyFigures) if field.name.endswith(("ttlt_s", "ttft_s", "tpot_s"))
)
_RATIOS = (("mean_ttlt_s", "mean TTLT"), ("p99_ttlt_s", "P99"))
_WITH_SPREAD = ("mean_ttlt_s", "p99_ttlt_s")


def _cell(result: BenchResult, policy: str, name: str, form: str) -> str:
    spread = result.spread(policy, name)
    return _spread_text(spread, form) if name in _WITH_SPREAD else form.format(spread.mean)


def _spread_text(spread: Spread, form: str) -> str:
    if spread.lowest == spread.highest:
        return form.format(spread.mean)
    return f"{form.format(spread.mean)} ({form.format(spread.lowest)}-{form.format(spread.highest)})"


def _html_table(result: BenchResult, against: str | None) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings(result, against))
    rows = [
        f"<tr><td>{escape(policy)}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells_of(result, policy, against))
        + "</tr>"
        for policy in result.figures
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
