"""The command that plans capacity from recorded history: `plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.benchmark import JsonFlag, QuietFlag, shares, words
from controller.cli.help import LOOK
from controller.cli.output import print_table, progress_bar, require_writable, say, write_figures
from controller.cli.replay import EngineFlag, LastFlag, ModelFlag, SinceFlag, UntilFlag, read_slice

if TYPE_CHECKING:
    from controller.replay.plan import Plan


def add_plan(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: sagesched plan --store /var/lib/sagesched --since 1d --attainment 0.95,0.99 --load 40",
        rich_help_panel=LOOK,
    )(plan)


def plan(
    *,
    attainment: Annotated[
        str, typer.Option(metavar="X,Y", help="shares of the requests with targets that are to meet them")
    ] = "0.95",
    load: Annotated[
        float | None, typer.Option(metavar="RPS", help="requests/s to be served; the recorded load if not given")
    ] = None,
    policies: Annotated[str, typer.Option(metavar="A,B,C", help="any of `bench`")] = "fcfs,sage",
    resamples: Annotated[int, typer.Option(min=0, max=100, help="resamples beside the record, for the interval")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="of the resamples")] = 1,
    since: SinceFlag = None,
    until: UntilFlag = None,
    last: LastFlag = 1000,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    json_file: JsonFlag = None,
    quiet: QuietFlag = False,
    store: Annotated[Path | None, typer.Option("--store", metavar="DIR", help="folder of the history")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="configuration file")] = None,
) -> None:
    """Plan capacity from the history. How much load one engine can handle, replicas for a load, what a class costs.

    The recorded requests of the busiest engine arrive faster and slower; targets are those of the record, or default ones.
    """
    from controller.api.client import history_folder
    from controller.config import load_config
    from controller.policy.from_config import schedule_of
    from controller.replay.plan import PlanSpec, make_plan

    require_writable(json_file)
    tree = load_config({"store": {"path": store}}, file=config)
    spec = PlanSpec(
        policies=words(policies),
        schedule=schedule_of(tree.policy),
        attainments=shares("--attainment", attainment),
        resamples=resamples,
        seed=seed,
        load_rps=load,
    )
    runs = read_slice(history_folder(tree), since=since, until=until, engine=engine, model=model, last=last)
    busiest = max(runs, key=lambda run: sum(request.counted for request in run.requests))
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("requests served in all replays", total=None)
        result = make_plan(spec, busiest, lambda: bar.advance(task))
    _show(result, json_file)


def _show(result: Plan, json_file: Path | None) -> None:
    from controller.replay.plan_report import cost_table, describe, load_table, verdict

    say(describe(result))
    for line in verdict(result):
        say(line)
    print_table(load_table(result))
    if result.costs:
        print_table(cost_table(result))
    write_figures(json_file, json.dumps(result.as_json(), indent=2) + "\n")
