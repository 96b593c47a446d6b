"""The command that runs the suite: `suite`."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli.benchmark import HtmlFlag, JsonFlag, ProcessesFlag, QuietFlag, numbers, shares, words
from controller.cli.help import EXPERIMENT
from controller.cli.output import print_table, progress_bar, require_writable, write_figures
from store.errors import BadInputError

if TYPE_CHECKING:
    from controller.benchmark.suite.measured import Measured
    from controller.benchmark.suite.suite import SuiteResult, SuiteSpec


def add_suite(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: sagesched suite --cases heavy-tail-24k,bursts --seeds 1,2 --html suite.html",
        rich_help_panel=EXPERIMENT,
    )(suite)


def suite(
    *,
    short: Annotated[bool, typer.Option("--short", help="a few small cases, in minutes")] = False,
    cases: Annotated[str, typer.Option(metavar="A,B,C", help="these cases, groups or families alone")] = "",
    loads: Annotated[str, typer.Option(metavar="X,Y,Z", help="cases of these loads alone")] = "",
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            metavar="FILE",
            help="a file of your own in place of the built-in cases",
        ),
    ] = "",
    seeds: Annotated[str, typer.Option(metavar="1,2,3", help="seeds of each case (1,2,3; short: 1)")] = "",
    engine: Annotated[
        Literal["simulated", "vllm", "both"],
        typer.Option(help="scheduler that serves; both: also vLLM's own, one load of each kind on the first seed"),
    ] = "simulated",
    tuned: Annotated[
        bool, typer.Option("--tuned", help="baselines also at every watermark, FCFS and priority at every token budget")
    ] = False,
    requests: Annotated[
        int | None, typer.Option(min=10, help="measured requests of each run, in place of the case's own")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="requests that are learned from before, in place of the case's own")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="list the cases and run nothing")] = False,
    processes: ProcessesFlag = 0,
    json_file: JsonFlag = None,
    html: HtmlFlag = None,
    quiet: QuietFlag = False,
) -> int:
    """Compare with every baseline on many kinds of traffic. The exit code is 1 if a target is missed."""
    from controller.benchmark.suite.cases import CASES, SHORT_CASES, SHORT_SEEDS, cases_of_file, selected
    from controller.benchmark.suite.suite import SuiteSpec, sized

    if workload and short:
        raise BadInputError("--short has cases of its own: give --workload without it, and --loads or --requests")
    known = cases_of_file(workload) if workload else SHORT_CASES if short else CASES
    chosen = selected(known, words(cases), shares("--loads", loads))
    if listed:
        sys.stdout.write("".join(f"{case.name}\n" for case in chosen))
        return 0
    require_writable(json_file, html)
    spec = SuiteSpec(cases=sized(chosen, requests=requests, warmup=warmup), engine=engine, tuned=tuned, short=short)
    if seeds or short:
        spec = replace(spec, seeds=numbers("--seeds", seeds) if seeds else SHORT_SEEDS)
    result = _run(spec, processes=processes, quiet=quiet)
    _show(result, json_file, html)
    return 1 if result.failed else 0


def _run(spec: SuiteSpec, *, processes: int, quiet: bool) -> SuiteResult:
    from controller.benchmark.suite.report import case_line, case_table
    from controller.benchmark.suite.suite import run_suite

    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("requests served in all runs", total=None)

        def show(measured: Measured) -> None:
            bar.stop()
            print_table(case_table(measured))
            sys.stdout.write(f"{case_line(measured)}\n\n")
            sys.stdout.flush()
            bar.start()

        return run_suite(
            spec,
            timer=time.perf_counter,
            progress=lambda served, total: bar.update(task, completed=served, total=total),
            processes=processes or os.cpu_count() or 1,
            on_case=show,
        )


def _show(result: SuiteResult, json_file: Path | None, html: Path | None) -> None:
    from controller.benchmark.suite.report import summary_table, worst_table, write_html

    print_table(summary_table(result))
    print_table(worst_table(result))
    checked = sum(result.decides(check) for _, check in result.checks)
    sys.stdout.write(f"{len(result.failed)} of {checked} targets are missed\n")
    write_figures(json_file, json.dumps(result.as_json(), indent=2) + "\n")
    if html is not None:
        write_html(result, html)
