"""The command that measures length prediction: `evaluate`."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from controller.cli.help import EXPERIMENT
from controller.cli.output import known_workload, print_table, progress_bar, require_writable, write_figures
from store.errors import BadInputError


def add_evaluate(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: sagesched evaluate --workload mix.parquet --requests 4000 --json e.json",
        rich_help_panel=EXPERIMENT,
    )(evaluate)


def evaluate(
    *,
    workload: Annotated[
        str, typer.Option("--workload", metavar="FILE", help="a workload file, or `synthetic`", callback=known_workload)
    ] = "synthetic",
    requests: Annotated[int, typer.Option(min=1, help="requests in all")] = 3000,
    warmup: Annotated[int, typer.Option(min=0, help="of these, learned from without being scored")] = 500,
    seed: Annotated[int, typer.Option("--seed", help="of sample and arrivals")] = 1,
    requests_per_token: Annotated[
        float,
        typer.Option(min=0.0, help="delay of teaching an answer, in requests for each of its tokens; 0: at once"),
    ] = 0.0,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation", help="compare with the mixture without each expert and feature, not with each alone"
        ),
    ] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="instead: one family's lengths x 3, another's x 0.3 midway, and a new one")
    ] = False,
    upkeep: Annotated[
        bool,
        typer.Option(
            "--upkeep", help="instead: rebuild the learner from a history of --requests requests; time, memory"
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a report with plots there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Measure length prediction. Each length is first predicted, then learned; quality and speed."""
    if ablation + drift + upkeep > 1:
        raise BadInputError("--ablation, --drift and --upkeep are measured one at a time: give one of them")
    if html is not None and (drift or upkeep):
        raise BadInputError(f"--html {str(html)!r} shows no drift and no upkeep: leave it out, or take --json")
    if warmup >= requests and not (drift or upkeep):
        raise BadInputError(f"warmup is {warmup} of {requests} requests: leave some to be scored")
    require_writable(json_file, html)
    if drift:
        _drift(workload, requests, seed, requests_per_token, json_file, quiet=quiet)
    elif upkeep:
        _upkeep(workload, requests, seed, json_file, quiet=quiet)
    else:
        _study(
            workload,
            requests=requests,
            warmup=warmup,
            seed=seed,
            requests_per_token=requests_per_token,
            ablation=ablation,
            json_file=json_file,
            html=html,
            quiet=quiet,
        )


def _study(
    workload: str,
    *,
    requests: int,
    warmup: int,
    seed: int,
    requests_per_token: float,
    ablation: bool,
    json_file: Path | None,
    html: Path | None,
    quiet: bool,
) -> None:
    from controller.benchmark.prediction.report import write_html
    from controller.benchmark.prediction.study import MAIN_LEARNER, quality_table, study_workload, task_table

    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("evaluate", total=requests)
        study = study_workload(
            workload,
            requests=requests,
            warmup=warmup,
            seed=seed,
            requests_per_token=requests_per_token,
            ablation=ablation,
            clock=time.perf_counter,
            progress=lambda done: bar.update(task, completed=done),
        )
    print_table(quality_table(study.result))
    if (tasks := task_table(study)) is not None:
        print_table(tasks)
    write_figures(json_file, json.dumps(study.result.as_json(Path(workload).name, MAIN_LEARNER), indent=2) + "\n")
    if html is not None:
        write_html(study, html)


def _drift(
    workload: str, requests: int, seed: int, requests_per_token: float, json_file: Path | None, *, quiet: bool
) -> None:
    from controller.benchmark.prediction.drift import drift_study, drift_table

    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("evaluate --drift", total=requests)
        blocks = drift_study(
            workload,
            requests=requests,
            seed=seed,
            requests_per_token=requests_per_token,
            clock=time.perf_counter,
            progress=lambda done: bar.update(task, completed=done),
        )
    print_table(drift_table(blocks))
    figures = {"workload": Path(workload).name, "requests": requests, "drift": [asdict(block) for block in blocks]}
    write_figures(json_file, json.dumps(figures, indent=2) + "\n")


def _upkeep(workload: str, requests: int, seed: int, json_file: Path | None, *, quiet: bool) -> None:
    from controller.benchmark.prediction.rebuild_cost import measure_upkeep, upkeep_table

    with progress_bar(quiet=quiet) as bar, tempfile.TemporaryDirectory(prefix="sagesched-upkeep-") as folder:
        task = bar.add_task("evaluate --upkeep", total=requests)
        measured = measure_upkeep(
            workload,
            Path(folder),
            answers=requests,
            seed=seed,
            clock=time.perf_counter,
            cpu_clock=time.process_time,
            progress=lambda done: bar.update(task, completed=done),
        )
    print_table(upkeep_table(measured))
    figures = {"workload": Path(workload).name, "upkeep": asdict(measured)}
    write_figures(json_file, json.dumps(figures, indent=2) + "\n")
