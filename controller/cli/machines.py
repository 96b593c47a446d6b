"""The commands for more than one machine: `merge`, and `routers`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from controller.cli.help import ADMINISTER, EXPERIMENT
from controller.cli.output import known_workload, print_table, progress_bar, require_writable, write_figures
from store.errors import BadInputError

if TYPE_CHECKING:
    from rich.table import Table

    from controller.benchmark.scheduling.routers import RouterRun

Number = TypeVar("Number", int, float)


def add_machines(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: sagesched merge /var/lib/sagesched-east /var/lib/sagesched-west --into /srv/all",
        rich_help_panel=ADMINISTER,
    )(merge)
    app.command(
        epilog="Example: sagesched routers --speeds 1,1,1,0.5 --load 1.05 --seeds 1,2,3 --json routers.json",
        rich_help_panel=EXPERIMENT,
    )(routers)


def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE STORE...", help="folders of histories")],
    *,
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="a new folder for the merged history")],
) -> None:
    """Merge histories into a new one. For sql, replay, the dashboard or a controller of all engines."""
    from store.history.merge import merge_histories

    merged = merge_histories(stores, into, now_s=time.time())
    for path in merged.running:
        typer.echo(f"{path}: its controller runs, merged as far as it had sealed")
    typer.echo(
        f"{into}: {merged.rows['completions']} requests that ended, {sum(merged.rows.values())} rows,"
        f" {merged.left_out} left out that another source had"
    )


def routers(
    *,
    workload: Annotated[
        str, typer.Option(metavar="FILE", help="a workload file, or `synthetic`", callback=known_workload)
    ] = "synthetic",
    profile: Annotated[str, typer.Option(metavar="NAME", help="model and GPU")] = "h800-qwen3-32b-24k",
    speeds: Annotated[
        str, typer.Option(metavar="A,B,...", help="speed of each engine relative to the profile")
    ] = "1,1",
    load: Annotated[float, typer.Option(help="arrival rate relative to the capacity of all engines under FCFS")] = 1.05,
    requests: Annotated[int, typer.Option(help="measured requests for each engine")] = 600,
    warmup: Annotated[int, typer.Option(help="requests that are learned from before")] = 1000,
    arrivals: Annotated[str, typer.Option(metavar="HOW", help="own, poisson, trace or gamma:CV")] = "own",
    seeds: Annotated[str, typer.Option(metavar="1,2,3", help="of sample and arrivals")] = "1,2,3",
    names: Annotated[
        str, typer.Option("--routers", metavar="A,B", help="which")
    ] = "round-robin,two-choices,least-outstanding,predicted",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Compare routers in front of engines, in virtual time."""
    from controller.benchmark.scheduling.routers import RouterSpec, run_routers

    require_writable(json_file)
    spec = RouterSpec(
        workload=workload,
        profile=profile,
        speeds=_numbers("--speeds", speeds, float),
        load=load,
        requests=requests,
        warmup=warmup,
        arrivals=arrivals,
        seeds=_numbers("--seeds", seeds, int),
        routers=tuple(name.strip() for name in names.split(",") if name.strip()),
    )
    total = spec.requests * len(spec.speeds) * len(spec.seeds) * len(spec.routers)
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("requests served in all runs", total=total)
        runs = run_routers(spec, progress=lambda served: bar.advance(task, served))
    print_table(_table(runs))
    write_figures(json_file, json.dumps([_as_json(run) for run in runs], indent=2) + "\n")


def _table(runs: list[RouterRun]) -> Table:
    """One row for each router, seeds side by side."""
    from controller.reports.tables import text_table

    columns = ("mean_ttlt_s", "p99_ttlt_s", "mean_ttft_s", "p99_ttft_s", "recompute_tax")
    table = text_table(None, ("router", *columns, "shares"), left=1)
    for name in dict.fromkeys(run.router for run in runs):
        own = [run for run in runs if run.router == name]
        cells = [" / ".join(f"{getattr(run.figures, column):.3g}" for run in own) for column in columns]
        shares = " / ".join(":".join(f"{share:.2f}" for share in run.shares) for run in own)
        table.add_row(name, *cells, shares)
    return table


def _as_json(run: RouterRun) -> dict[str, object]:
    return {"router": run.router, "seed": run.seed, "shares": run.shares, **asdict(run.figures)}


def _numbers(flag: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise BadInputError(f"{flag} is {text!r}: give numbers with commas between, such as 1,1") from None
