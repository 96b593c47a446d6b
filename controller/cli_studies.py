"""The commands that measure instead of serve: `bench` and `evaluate`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from store.errors import BadInputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from controller.bench import BenchSpec
    from controller.bench_result import BenchResult

DEFAULT_PROFILE = "h800-qwen3-32b-24k"
WorkloadFlag = Annotated[str, typer.Option("--workload", metavar="FILE", help="a workload file, or `synthetic`")]
SeedFlag = Annotated[int, typer.Option("--seed", help="of sample and arrivals")]
SeedsFlag = Annotated[str, typer.Option(metavar="1,2,3", help="several seeds, instead of --seed")]
RequestsFlag = Annotated[int, typer.Option(help="measured requests of each run")]
WarmupFlag = Annotated[int, typer.Option(help="requests that are learnt from before")]
PoliciesFlag = Annotated[str, typer.Option(metavar="A,B,C")]
EngineFlag = Annotated[Literal["simulated", "vllm"], typer.Option(help="whose scheduler serves")]
ObjectiveFlag = Annotated[Literal["mean", "balanced", "tail"], typer.Option(help="what sage favours")]
TunedFlag = Annotated[
    bool, typer.Option("--tuned", help="every rival at its best static watermark; load of tuned FCFS")
]
ArrivalsFlag = Annotated[str, typer.Option(metavar="HOW", help="own, poisson, trace or gamma:CV")]
PrefixFlag = Annotated[
    bool | None,
    typer.Option("--prefix-caching/--no-prefix-caching", help="default: on with --engine vllm, off with simulated"),
]
AgainstFlag = Annotated[str, typer.Option(metavar="POLICY", help="the table has ratios to this one, if it runs")]
ProcessesFlag = Annotated[int, typer.Option(min=0, max=64, help="runs that go on at once; 0: one for each core")]
JsonFlag = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")]
HtmlFlag = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a report with plots there")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


def add_studies(app: typer.Typer) -> None:
    """Add both commands."""
    app.command(
        epilog="Example: sagesched bench --workload mix.parquet --load 1.05 --requests 1800 --warmup 4000 --json b.json"
    )(bench)
    app.command(epilog="Example: sagesched evaluate --workload mix.parquet --requests 4000 --json e.json")(evaluate)


def bench(  # noqa: PLR0913 - one parameter for each flag
    *,
    workload: WorkloadFlag = "synthetic",
    profile: Annotated[str, typer.Option(metavar="NAME", help="model and GPU")] = DEFAULT_PROFILE,
    load: Annotated[float, typer.Option(help="arrivals relative to what FCFS serves at full backlog")] = 1.05,
    requests: RequestsFlag = 600,
    warmup: WarmupFlag = 1000,
    seed: SeedFlag = 1,
    seeds: SeedsFlag = "",
    policies: PoliciesFlag = "fcfs,sagesched-paper,sage,srpt-oracle",
    engine: EngineFlag = "simulated",
    objective: ObjectiveFlag = "balanced",
    tuned: TunedFlag = False,
    arrivals: ArrivalsFlag = "own",
    prefix_caching: PrefixFlag = None,
    against: AgainstFlag = "fcfs",
    processes: ProcessesFlag = 0,
    json_file: JsonFlag = None,
    html: HtmlFlag = None,
    quiet: QuietFlag = False,
) -> None:
    """Policies side by side on one workload, in virtual time."""
    from controller.bench import BenchSpec  # noqa: PLC0415 - keeps --help quick

    _require_writable(json_file, html)
    spec = BenchSpec(
        workload=workload,
        profile=profile,
        load=load,
        requests=requests,
        warmup=warmup,
        seeds=_numbers("--seeds", seeds) if seeds else (seed,),
        policies=_words(policies),
        engine=engine,
        prefix_caching=prefix_caching,
        arrivals=arrivals,
        tuned=tuned,
        objective=objective,
    )
    (result,) = _run_benches([spec], processes=processes, quiet=quiet)
    _show_bench(result, json_file, html, against if against in spec.policies else None)


def evaluate(  # noqa: PLR0913 - one parameter for each flag
    *,
    workload: WorkloadFlag = "synthetic",
    requests: Annotated[int, typer.Option(min=1, help="requests in all")] = 3000,
    warmup: Annotated[int, typer.Option(min=0, help="of these, learnt from without being scored")] = 500,
    seed: SeedFlag = 1,
    requests_per_token: Annotated[
        float, typer.Option(min=0.0, help="teach an answer so many requests later for each of its tokens; 0: at once")
    ] = 0.0,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="compare with the mixture without each expert, not with each alone")
    ] = False,
    json_file: JsonFlag = None,
    html: HtmlFlag = None,
    quiet: QuietFlag = False,
) -> None:
    """Prequential quality and speed of the length prediction: first predict, then learn."""
    from controller.evaluate_report import write_html  # noqa: PLC0415 - keeps --help quick
    from controller.study import MAIN_LEARNER, quality_table, study_workload, task_table  # noqa: PLC0415 - as above

    if warmup >= requests:
        raise BadInputError(f"warmup is {warmup} of {requests} requests: leave some to be scored")
    _require_writable(json_file, html)
    with _progress(quiet=quiet) as bar:
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
    _print(quality_table(study.result))
    if (tasks := task_table(study)) is not None:
        _print(tasks)
    _write(json_file, json.dumps(study.result.as_json(Path(workload).name, MAIN_LEARNER), indent=2) + "\n")
    if html is not None:
        write_html(study, html)


def _run_benches(specs: list[BenchSpec], *, processes: int, quiet: bool) -> list[BenchResult]:
    from controller.bench import run_benches  # noqa: PLC0415 - keeps --help quick

    with _progress(quiet=quiet) as bar:
        task = bar.add_task("requests served in all runs", total=None)
        return run_benches(
            specs,
            timer=time.perf_counter,
            progress=lambda served, total: bar.update(task, completed=served, total=total),
            processes=processes or os.cpu_count() or 1,
        )


def _show_bench(result: BenchResult, json_file: Path | None, html: Path | None, against: str | None) -> None:
    from controller.bench_report import bench_table, write_html  # noqa: PLC0415 - keeps --help quick

    _print(bench_table(result, against))
    _write(json_file, json.dumps(result.as_json(against), indent=2) + "\n")
    if html is not None:
        write_html(result, html, against)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise BadInputError(f"{flag} is {text!r}: give whole numbers with commas between, such as 1,2,3") from None


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    """A progress bar on standard error, so that standard output holds results only."""
    from rich.console import Console  # noqa: PLC0415 - keeps --help quick
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        yield bar


def _print(table: object) -> None:
    from rich.console import Console  # noqa: PLC0415 - keeps --help quick

    console = Console()
    Console(width=None if console.is_terminal else 220).print(table)


def _require_writable(*files: Path | None) -> None:
    """Find out before minutes of work that the result could not be kept."""
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise BadInputError(f"cannot write {str(file)!r}: give a file in a folder that exists")


def _write(file: Path | None, text: str) -> None:
    if file is None:
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        sys.stdout.write(text)
        raise BadInputError(f"cannot write {str(file)!r} ({error.strerror}): the figures are printed instead") from None
