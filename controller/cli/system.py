"""The commands that measure the system itself: its overhead, its load limit, and the live server against the benchmark."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli.benchmark import MixFlag, mix_chosen
from controller.cli.help import EXPERIMENT
from controller.cli.output import (
    fresh_folder,
    known_workload,
    print_table,
    progress_bar,
    require_writable,
    write_figures,
)
from engine_adapter.agent.clock import steady_clock
from engine_adapter.serving.fleet import bursts_of
from store.errors import BadInputError

if TYPE_CHECKING:
    from rich.progress import TaskID

JsonFlag = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="no progress")]


def add_proofs(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: sagesched overhead --occupancies 256/1000 --json overhead.json", rich_help_panel=EXPERIMENT
    )(overhead)
    app.command(
        name="live-comparison",
        epilog="Example: sagesched live-comparison --workload mix.parquet --load 1.05 --json live.json",
        rich_help_panel=EXPERIMENT,
    )(live_comparison)
    app.command(
        name="load-test",
        epilog="Example: sagesched load-test --engines 64 --rate 8 --seconds 120 --json load.json",
        rich_help_panel=EXPERIMENT,
    )(load_test)


def overhead(
    *,
    occupancies: Annotated[
        str, typer.Option(metavar="R/W,...", help="requests running and waiting in the engine")
    ] = "16/100,256/1000,256/10000",
    steps: Annotated[int, typer.Option(help="steps of each scheduler at each occupancy")] = 300,
    unfinished: Annotated[
        str, typer.Option(metavar="N,...", help="unfinished requests in the controller when another arrives")
    ] = "16,256,1256",
    arrivals: Annotated[int, typer.Option(help="arrivals timed at each number of unfinished requests")] = 200,
    json_file: JsonFlag = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure what the plugin adds to a step of vLLM. Time, allocations, and arrival to table in the controller."""
    from controller.benchmark.system.overhead import OverheadSpec, run_overhead
    from controller.benchmark.system.overhead_report import overhead_tables

    spec = OverheadSpec(
        occupancies=tuple(_pair(pair) for pair in _words(occupancies)),
        steps=steps,
        unfinished=tuple(_whole("unfinished", number) for number in _words(unfinished)),
        arrivals=arrivals,
    )
    require_writable(json_file)
    with progress_bar(quiet=quiet) as bar:
        tasks = {name: bar.add_task(name, total=total) for name, total in spec.parts().items()}
        result = run_overhead(
            spec,
            clock=time.time,
            timer=time.perf_counter,
            cpu_timer=time.thread_time,
            progress=lambda name, done: bar.update(tasks[name], completed=done),
        )
    for table in overhead_tables(result):
        print_table(table)
    write_figures(json_file, json.dumps(result.as_json(), indent=2) + "\n")


def live_comparison(
    *,
    workload: Annotated[
        str, typer.Option(metavar="FILE", help="a workload file, or `synthetic`", callback=known_workload)
    ] = "synthetic",
    profile: Annotated[str, typer.Option(metavar="NAME", help="model and GPU")] = "h800-qwen3-32b-24k",
    load: Annotated[float, typer.Option(help="arrival rate relative to the capacity of stock FCFS")] = 1.05,
    requests: Annotated[int, typer.Option(help="measured requests")] = 400,
    warmup: Annotated[int, typer.Option(help="requests that are learned from before")] = 1000,
    seed: Annotated[int, typer.Option(help="of sample and arrivals")] = 1,
    speed: Annotated[float, typer.Option(help="device seconds per second, which the host must keep up with")] = 2.0,
    objective: Annotated[Literal["mean", "balanced", "tail"], typer.Option(help="what sage favors")] = "balanced",
    prefix_caching: Annotated[bool, typer.Option(help="as vLLM has it by default")] = True,
    slo: Annotated[
        bool, typer.Option("--slo", help="requests in service classes with targets: goodput as vLLM's client judges it")
    ] = False,
    mix: MixFlag = "",
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keeps logs, results and history; default: a fresh one")
    ] = None,
    json_file: JsonFlag = None,
    quiet: QuietFlag = False,
) -> None:
    """Compare virtual time with a live vLLM. One trace, on a virtual GPU, stock and with the plugin."""
    from controller.benchmark.system.live_comparison import LiveSpec, run_live_comparison
    from controller.benchmark.system.live_report import live_tables

    spec = LiveSpec(
        workload=workload,
        profile=profile,
        load=load,
        requests=requests,
        warmup=warmup,
        seed=seed,
        speed=speed,
        prefix_caching=prefix_caching,
        objective=objective,
        mix=mix_chosen(mix, slo=slo),
    )
    require_writable(json_file)
    place = fresh_folder(folder)
    with progress_bar(quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        result = run_live_comparison(
            spec, folder=place, clock=time.time, pause=time.sleep, timer=time.perf_counter, progress=report
        )
    for table in live_tables(result):
        print_table(table)
    write_figures(json_file, json.dumps(result.as_json(), indent=2) + "\n")


def load_test(
    *,
    engines: Annotated[int, typer.Option(help="simulated engines")] = 64,
    rate: Annotated[float, typer.Option(help="requests per second and engine")] = 8.0,
    burst: Annotated[
        str | None,
        typer.Option(
            metavar="REQUESTS/RATE/SECONDS", help="bursts in place of a rate: their requests, rate and spacing"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="measured time")] = 60.0,
    warmup: Annotated[float, typer.Option(metavar="SECONDS", help="seconds of warm-up, which are not measured")] = 30.0,
    window: Annotated[float, typer.Option(metavar="SECONDS", help="between two looks")] = 5.0,
    token_s: Annotated[float, typer.Option(help="seconds of an engine for an output token")] = 0.03,
    max_running: Annotated[int, typer.Option(help="requests that an engine runs at once")] = 256,
    retention_gb: Annotated[float, typer.Option(help="the history's bound")] = 20.0,
    watch: Annotated[bool, typer.Option(help="send a dashboard's requests in every other window")] = False,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keeps history and logs; default: a fresh one")
    ] = None,
    json_file: JsonFlag = None,
    quiet: QuietFlag = False,
) -> None:
    """Load a controller with many engines. Simulated ones; measures latency, drops, CPU, memory and disk."""
    from controller.benchmark.system.load_report import load_tables
    from controller.benchmark.system.load_test import LoadSpec, run_load_test

    spec = LoadSpec(
        engines=engines,
        rate_rps=rate,
        burst=burst,
        seconds=seconds,
        warmup_s=warmup,
        window_s=window,
        token_s=token_s,
        max_running=max_running,
        retention_gb=retention_gb,
        watch=watch,
    )
    if burst is not None:
        bursts_of(burst)
    require_writable(json_file)
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("windows", total=spec.windows)
        result = run_load_test(
            spec,
            folder=fresh_folder(folder),
            clock=steady_clock(),
            pause=time.sleep,
            progress=lambda done: bar.update(task, completed=done),
        )
    for table in load_tables(result):
        print_table(table)
    write_figures(json_file, json.dumps(result.as_json(), indent=2) + "\n")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pair(text: str) -> tuple[int, int]:
    running, _, waiting = text.partition("/")
    return _whole("occupancies", running), _whole("occupancies", waiting)


def _whole(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise BadInputError(f"--{flag} has {text!r}: give whole numbers, as in its default (see --help)")
    return int(text)
