"""Report of the live comparison: the figures of each run, and the agreement of the ratios."""

from __future__ import annotations

from rich.table import Table

from controller.benchmark.system.live_comparison import SIDES, TOLERANCE, LiveComparison
from controller.reports.tables import text_table

LATE_HOST = 0.1
"""Share of device time lost by a late host above which live figures measure the host more than the scheduler."""


def live_tables(result: LiveComparison) -> list[Table]:
    """Times and pace of the four runs, and the ratios of ours to stock, live and virtual."""
    return [_runs_table(result), _ratio_table(result)]


def _runs_table(result: LiveComparison) -> Table:
    spec = result.spec
    title = (
        f"{spec.workload} on {spec.profile}: {spec.requests} requests, load {spec.load:g} = "
        f"{result.rate_rps:.2f}/s, seed {spec.seed}, prefix caching {'on' if spec.prefix_caching else 'off'}, "
        f"live at {spec.speed:g} times real time"
    )
    headings = ("run", "TTLT mean s", "P50", "P90", "P99", "TTFT mean s", "makespan s", "device late", "client late s")
    table = text_table(title, headings if spec.mix is None else (*headings, "goodput"), left=1)
    for world, runs in (("virtual", result.virtual), ("live", result.live)):
        for side in SIDES:
            run = runs[side]
            cells = [run.mean_ttlt_s, run.p50_ttlt_s, run.p90_ttlt_s, run.p99_ttlt_s, run.mean_ttft_s, run.makespan_s]
            goodput = () if spec.mix is None else (f"{result.goodput(world, side):.1%}",)
            row = (f"{world}, {side}", *(f"{cell:.2f}" for cell in cells), *_pace(result, world, side), *goodput)
            table.add_row(*row)
    return table


def _pace(result: LiveComparison, world: str, side: str) -> tuple[str, str]:
    if world == "virtual":
        return "", ""
    run = result.live[side]
    return f"{run.distortion:.1%}", f"{run.late_s:.2f}"


def _ratio_table(result: LiveComparison) -> Table:
    table = text_table("sage / fcfs", ("figure", "virtual", "live", "live / virtual", f"within {TOLERANCE:.0%}"))
    for ratio in result.ratios:
        table.add_row(
            ratio.figure,
            f"{ratio.virtual:.3f}",
            f"{ratio.live:.3f}",
            f"{ratio.deviation:+.1%}",
            "yes" if ratio.agrees else "no",
        )
    distortion = max(run.distortion for run in result.live.values())
    if distortion > LATE_HOST:
        table.caption = f"The host was late by {distortion:.0%} of the device's time: lower --speed or free the machine"
    return table
