"""The command that replays recorded history under other policies: `replay`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli.help import LOOK
from controller.cli.output import print_table, progress_bar, require_writable, say, write_figures
from store.errors import BadInputError

if TYPE_CHECKING:
    from controller.replay.recorded_run import RecordedRun
    from controller.replay.replay import Replay, ReplaySpec

SinceFlag = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="arrived from then on: 2026-01-31T09:00 (UTC), Unix seconds, or 2h"),
]
UntilFlag = Annotated[str | None, typer.Option(metavar="TIME", help="arrived before then, in the same forms")]
LastFlag = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="largest number of requests; the latest are replayed")
]
EngineFlag = Annotated[str | None, typer.Option(metavar="ID", help="of this engine alone")]
ModelFlag = Annotated[str | None, typer.Option(metavar="NAME", help="of this model alone")]
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def add_replay(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: sagesched replay --store /var/lib/sagesched --since 2h --policies fcfs,sage,sage-tail "
        "--set policy.overtaking=3 --html replay.html",
        rich_help_panel=LOOK,
    )(replay)


def replay(
    *,
    policies: Annotated[
        str,
        typer.Option(metavar="A,B,C", help="any of `bench`; fcfs,sage, with --slo fcfs,priority,sage, if not given"),
    ] = "",
    slo: Annotated[
        bool, typer.Option("--slo", help="say which targets would have been met, default ones where none were promised")
    ] = False,
    since: SinceFlag = None,
    until: UntilFlag = None,
    last: LastFlag = 2000,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    objective: Annotated[Literal["mean", "balanced", "tail"] | None, typer.Option(help="what sage favors")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="another setting of sage, such as policy.gate_margin=1.5"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a report with plots there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
    store: Annotated[Path | None, typer.Option("--store", metavar="DIR", help="folder of the history")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="configuration file")] = None,
) -> None:
    """Replay the history under other policies or settings. The engine is as fast as the recorded one.

    Reports first how well the replay reproduces the recorded run.
    """
    from controller.api.client import history_folder
    from controller.config import load_config
    from controller.policy.from_config import schedule_of
    from controller.replay.replay import ReplaySpec

    require_writable(json_file, html)
    flags = {"store": {"path": store}, "policy": {**_settings(settings or ()), **_given(objective=objective)}}
    tree = load_config(flags, file=config)
    chosen = policies or ("fcfs,priority,sage" if slo else "fcfs,sage")
    names = tuple(word.strip() for word in chosen.split(",") if word.strip())
    spec = ReplaySpec(policies=names, schedule=schedule_of(tree.policy), slo=slo)
    runs = read_slice(history_folder(tree), since=since, until=until, engine=engine, model=model, last=last)
    _show(_run(spec, runs, quiet=quiet), json_file, html)


def read_slice(
    path: Path, *, since: str | None, until: str | None, engine: str | None, model: str | None, last: int
) -> Sequence[RecordedRun]:
    """The runs of a history in the slice that flags describe; raises `BadInputError`."""
    from controller.replay.read_history import Slice, read_runs
    from store.errors import StoreError
    from store.history.reader import open_history

    now_s = time.time()
    part = Slice(
        since_s=_moment_s("--since", since, now_s),
        until_s=_moment_s("--until", until, now_s),
        engine_id=engine,
        model=model,
        last=last,
    )
    try:
        connection = open_history(path)
    except StoreError as error:
        raise BadInputError(str(error)) from None
    with connection:
        return read_runs(connection, part)


def _run(spec: ReplaySpec, runs: Sequence[RecordedRun], *, quiet: bool) -> Replay:
    from controller.replay.replay import replay_length, require_policies, run_replay

    require_policies(spec, runs)
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("requests served in all replays", total=replay_length(spec, runs))
        return run_replay(spec, runs, lambda: bar.advance(task))


def _show(result: Replay, json_file: Path | None, html: Path | None) -> None:
    from controller.replay.report import (
        describe,
        fit_table,
        policies_table,
        service_table,
        verdict,
        write_html,
    )

    say(describe(result))
    print_table(fit_table(result))
    for line in verdict(result):
        say(line)
    print_table(policies_table(result))
    if result.spec.slo:
        print_table(service_table(result))
    write_figures(json_file, json.dumps(result.as_json(), indent=2) + "\n")
    if html is not None:
        write_html(result, html)


def _settings(given: Sequence[str]) -> dict[str, str]:
    """The settings of the policy that were given as KEY=VALUE."""
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section != "policy" or not name or name in {"name", "objective"}:
            raise BadInputError(
                f"--set {text!r} is no setting of the order: give policy.KEY=VALUE, such as policy.overtaking=3 "
                "(policies and objective have flags of their own; `sagesched doctor --settings` lists them)"
            )
        found[name] = value.strip()
    return found


def _given(**flags: str | None) -> dict[str, str]:
    return {name: value for name, value in flags.items() if value is not None}


def _moment_s(flag: str, text: str | None, now_s: float) -> float | None:
    """Unix seconds of a moment: ISO 8601 (UTC unless it says otherwise), Unix seconds, or a span before now.

    >>> _moment_s("--since", "2h", 10_000.0), _moment_s("--since", "1970-01-01T01:00", 0.0)
    (2800.0, 3600.0)
    """
    if text is None:
        return None
    span = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if span:
        return now_s - float(span[1]) * UNITS_S[span[2]]
    readers: tuple[Callable[[str], float], ...] = (float, _from_iso_s)
    for read in readers:
        try:
            return read(text)
        except ValueError:
            continue
    raise BadInputError(f"{flag} is {text!r}: give a time such as 2026-01-31T09:00 (UTC), Unix seconds, or 90m, 2h, 3d")


def _from_iso_s(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
