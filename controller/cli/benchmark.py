"""The commands that measure scheduling in virtual time: `bench` and `sweep`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli.evaluate import add_evaluate
from controller.cli.help import EXPERIMENT
from controller.cli.output import known_workload, print_table, progress_bar, require_writable, say, write_figures
from store.errors import BadInputError

if TYPE_CHECKING:
    from controller.benchmark.scheduling.result import BenchResult
    from controller.benchmark.scheduling.spec import BenchSpec

DEFAULT_PROFILE = "h800-qwen3-32b-24k"
DEFAULT_LOADS = "0.5,0.8,0.9,1,1.1,1.2"
DEFAULT_POLICIES = "fcfs,sagesched-paper,sage,srpt-oracle"
SLO_POLICIES = "fcfs,priority,sagesched-paper,sage,sage-without-targets"
WorkloadFlag = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="FILE",
        help="a workload file, or a built-in one such as `synthetic`",
        callback=known_workload,
    ),
]
SeedFlag = Annotated[int, typer.Option("--seed", help="of sample and arrivals")]
SeedsFlag = Annotated[str, typer.Option(metavar="1,2,3", help="several seeds, in place of --seed")]
RequestsFlag = Annotated[int, typer.Option(help="measured requests of each run")]
WarmupFlag = Annotated[int, typer.Option(help="requests that are learned from before")]
PoliciesFlag = Annotated[
    str, typer.Option(metavar="A,B,C", help=f"{DEFAULT_POLICIES}, with --slo {SLO_POLICIES}, if not given")
]
EngineFlag = Annotated[
    Literal["simulated", "vllm"], typer.Option(help="scheduler that serves: a simulated one or vLLM's own")
]
ObjectiveFlag = Annotated[Literal["mean", "balanced", "tail"], typer.Option(help="what sage favors")]
TunedFlag = Annotated[
    bool, typer.Option("--tuned", help="run every baseline at its best static watermark; load relative to tuned FCFS")
]
SloFlag = Annotated[
    bool, typer.Option("--slo", help="requests in service classes with targets: goodput, by which baselines are tuned")
]
MixFlag = Annotated[
    str, typer.Option("--mix", metavar="NAME", help="other service classes for --slo, such as chat-batch")
]
BearsFlag = Annotated[
    float | None,
    typer.Option("--bears", metavar="SHARE", help="with --slo, also the load up to which this share meets its targets"),
]
ArrivalsFlag = Annotated[str, typer.Option(metavar="HOW", help="own, poisson, trace, unscaled, at-once or gamma:CV")]
PrefixFlag = Annotated[bool, typer.Option(help="compute equal prompt prefixes once, as vLLM does by default")]
AgainstFlag = Annotated[
    str, typer.Option(metavar="POLICY", help="policy that ratios in the table are relative to, if it runs")
]
ProcessesFlag = Annotated[int, typer.Option(min=0, max=64, help="runs at the same time; 0: one for each core")]
JsonFlag = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")]
HtmlFlag = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a report with plots there")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


def add_studies(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: sagesched bench --workload mix.parquet --load 1.05 --requests 1800 --warmup 4000 --json b.json",
        rich_help_panel=EXPERIMENT,
    )(bench)
    app.command(
        epilog="Example: sagesched sweep --profiles h800-qwen3-32b,a40-llama3.1-8b --loads 0.8,1,1.2 --html sweep.html",
        rich_help_panel=EXPERIMENT,
    )(sweep)
    add_evaluate(app)


def bench(
    *,
    workload: WorkloadFlag = "synthetic",
    profile: Annotated[str, typer.Option(metavar="NAME", help="model and GPU")] = DEFAULT_PROFILE,
    load: Annotated[float, typer.Option(help="arrival rate relative to the capacity of FCFS at full backlog")] = 1.05,
    requests: RequestsFlag = 600,
    warmup: WarmupFlag = 1000,
    seed: SeedFlag = 1,
    seeds: SeedsFlag = "",
    policies: PoliciesFlag = "",
    engine: EngineFlag = "simulated",
    objective: ObjectiveFlag = "balanced",
    tuned: TunedFlag = False,
    slo: SloFlag = False,
    mix: MixFlag = "",
    bears: BearsFlag = None,
    arrivals: ArrivalsFlag = "own",
    prefix_caching: PrefixFlag = True,
    against: AgainstFlag = "fcfs",
    processes: ProcessesFlag = 0,
    json_file: JsonFlag = None,
    html: HtmlFlag = None,
    quiet: QuietFlag = False,
) -> None:
    """Compare policies on one workload, in virtual time."""
    from controller.benchmark.scheduling.spec import BUDGETS, BenchSpec

    require_writable(json_file, html)
    chosen_mix = mix_chosen(mix, slo=slo)
    if bears is not None and (chosen_mix is None or not 0.0 < bears < 1.0):
        raise BadInputError(f"--bears is {bears:g}: give a share between 0 and 1, such as 0.9, together with --slo")
    spec = BenchSpec(
        workload=workload,
        profile=profile,
        load=load,
        requests=requests,
        warmup=warmup,
        seeds=numbers("--seeds", seeds) if seeds else (seed,),
        policies=words(policies) or _default_policies(slo=chosen_mix is not None),
        engine=engine,
        prefix_caching=prefix_caching,
        arrivals=arrivals,
        tuned=tuned,
        mix=chosen_mix,
        budgets=BUDGETS if chosen_mix else (),
        objective=objective,
    )
    (result,) = _run_benches([spec], processes=processes, quiet=quiet)
    if bears is not None:
        _show_bearable(result, bears)
    _show_bench(result, json_file, html, against if against in spec.policies else None)


def sweep(
    *,
    workload: WorkloadFlag = "synthetic",
    profiles: Annotated[str, typer.Option(metavar="A,B,C", help="models and GPUs")] = DEFAULT_PROFILE,
    loads: Annotated[
        str, typer.Option(metavar="X,Y,Z", help="arrival rate relative to the capacity of FCFS")
    ] = DEFAULT_LOADS,
    requests: RequestsFlag = 600,
    warmup: WarmupFlag = 1000,
    seeds: SeedsFlag = "1",
    policies: PoliciesFlag = "",
    engine: EngineFlag = "simulated",
    objective: ObjectiveFlag = "balanced",
    tuned: TunedFlag = False,
    slo: SloFlag = False,
    mix: MixFlag = "",
    arrivals: ArrivalsFlag = "own",
    prefix_caching: PrefixFlag = True,
    against: AgainstFlag = "fcfs",
    processes: ProcessesFlag = 0,
    json_file: JsonFlag = None,
    html: HtmlFlag = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="draw gain against load there")] = None,
    quiet: QuietFlag = False,
) -> None:
    """Compare policies over loads and profiles."""
    from controller.benchmark.scheduling.spec import BUDGETS, BenchSpec

    require_writable(json_file, html, svg)
    chosen_mix = mix_chosen(mix, slo=slo)
    names = words(policies) or _default_policies(slo=chosen_mix is not None)
    if against not in names:
        raise BadInputError(f"--against is {against!r} and does not run: choose one of {', '.join(names)}")
    base = BenchSpec(
        workload=workload,
        requests=requests,
        warmup=warmup,
        seeds=numbers("--seeds", seeds),
        policies=names,
        engine=engine,
        prefix_caching=prefix_caching,
        arrivals=arrivals,
        tuned=tuned,
        mix=chosen_mix,
        budgets=BUDGETS if chosen_mix else (),
        objective=objective,
    )
    specs = [
        replace(base, profile=profile, load=load) for profile in words(profiles) for load in shares("--loads", loads)
    ]
    if not specs:
        raise BadInputError("--profiles or --loads is empty: give at least one of each")
    _show_sweep(_run_benches(specs, processes=processes, quiet=quiet), json_file, html, svg, against)


def mix_chosen(mix: str, *, slo: bool) -> str | None:
    """Name of the mix of service classes; None for none."""
    from controller.benchmark.scheduling.service_mix import DEFAULT_MIX

    return mix or (DEFAULT_MIX if slo else None)


def _default_policies(*, slo: bool) -> tuple[str, ...]:
    return words(SLO_POLICIES if slo else DEFAULT_POLICIES)


def _run_benches(specs: list[BenchSpec], *, processes: int, quiet: bool) -> list[BenchResult]:
    from controller.benchmark.scheduling.benchmark import run_benches

    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("requests served in all runs", total=None)
        return run_benches(
            specs,
            timer=time.perf_counter,
            progress=lambda served, total: bar.update(task, completed=served, total=total),
            processes=processes or os.cpu_count() or 1,
        )


def _show_bench(result: BenchResult, json_file: Path | None, html: Path | None, against: str | None) -> None:
    from controller.benchmark.scheduling.report import write_html

    _print_tables(result, against)
    write_figures(json_file, json.dumps(result.as_json(against), indent=2) + "\n")
    if html is not None:
        write_html([result], html, against)


def _show_bearable(result: BenchResult, share: float) -> None:
    from controller.benchmark.scheduling.bearable import bearable_loads, bearable_table

    print_table(bearable_table(bearable_loads(result, share, timer=time.perf_counter), share))


def _print_tables(result: BenchResult, against: str | None) -> None:
    from controller.benchmark.scheduling.report import bench_table, bench_verdict
    from controller.benchmark.scheduling.service_report import service_table

    print_table(bench_table(result, against))
    if verdict := bench_verdict(result):
        say(verdict)
    if result.spec.mix is not None:
        print_table(service_table(result))


def _show_sweep(
    results: list[BenchResult], json_file: Path | None, html: Path | None, svg: Path | None, against: str
) -> None:
    from controller.benchmark.scheduling.report import write_html
    from controller.benchmark.scheduling.svg_chart import write_gain_chart

    for result in results:
        _print_tables(result, against)
    write_figures(json_file, json.dumps({"sweep": [result.as_json(against) for result in results]}, indent=2) + "\n")
    if html is not None:
        write_html(results, html, against)
    if svg is not None:
        write_gain_chart(results, svg, against)


def shares(flag: str, text: str) -> tuple[float, ...]:
    """Numbers of a flag with commas between; raises `BadInputError`."""
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise BadInputError(f"{flag} is {text!r}: give numbers with commas between, such as 0.8,1,1.2") from None


def words(text: str) -> tuple[str, ...]:
    """Words of a flag with commas between; none for an empty text. Raises `BadInputError` for an empty word."""
    found = tuple(word.strip() for word in text.split(",")) if text.strip() else ()
    if "" in found:
        raise BadInputError(f"{text!r} has an empty entry: give words with one comma between two")
    return found


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers of a flag with commas between; raises `BadInputError`."""
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise BadInputError(f"{flag} is {text!r}: give whole numbers with commas between, such as 1,2,3") from None
