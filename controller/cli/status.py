"""`status`, `top` and `mode`: a running controller on one screen, and its switch."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Literal, TypeVar

import msgspec
import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controller.api.client import ApiClient
from controller.cli.help import ADMINISTER, LOOK
from controller.cli.output import Printable, say
from controller.config import load_config
from store.formatting import DASH, count, percent, span
from store.http_api import QueueView, StateView
from store.http_now import DemandNow, EngineNow, NowView
from store.http_requests import FinishedView
from store.rules import Level

WINDOW_S = 600.0
REQUESTS_COUNTED = 1000
QUEUE_ROWS = 8
EVENTS_SHOWN = 5
WORDS: dict[Level, str] = {"green": "GREEN", "info": "GREEN", "amber": "AMBER", "red": "RED"}
STYLES: dict[Level, str] = {"green": "green", "info": "dim", "amber": "yellow", "red": "red"}
ApiFlag = Annotated[str | None, typer.Option("--api", metavar="URL", help="the controller (http://127.0.0.1:8700)")]
ConfigFlag = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="configuration file")]
Answer = TypeVar("Answer", bound=msgspec.Struct)


def add_status(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: sagesched status --api http://127.0.0.1:8700", rich_help_panel=LOOK)(status)
    app.command(epilog="Example: sagesched top --interval 2", rich_help_panel=LOOK)(top)
    app.command(epilog="""Example: sagesched mode off --reason "incident 42" """, rich_help_panel=ADMINISTER)(mode)


def status(*, api: ApiFlag = None, config: ConfigFlag = None) -> int:
    """Show the verdict, latency, engines and queue on one screen.

    The exit code is 0 if it is (green), 1 if something should be looked at or done (amber, red).
    """
    client = client_of(api, config)
    try:
        screen = _screen(client)
    finally:
        client.close()
    Console().print(Printable(screen.shown))
    return 0 if screen.level == "green" else 1


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, max=60.0, help="seconds between two updates")] = 1.0,
    api: ApiFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show the same screen live, until Ctrl-C."""
    client = client_of(api, config)
    try:
        with Live(Printable(_screen(client).shown), screen=Console().is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(Printable(_screen(client).shown), refresh=True)
    finally:
        client.close()


def mode(
    wanted: Annotated[Literal["off", "shadow", "on"], typer.Argument(metavar="off|shadow|on")],
    *,
    reason: Annotated[str, typer.Option(help="recorded with the change")] = "asked for on the command line",
    api: ApiFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Switch all engines of a running controller to a mode."""
    client = client_of(api, config)
    try:
        settings = client.set_mode(wanted, reason, who=_person())
        engines = sum(engine.connected for engine in _asked(client, "/api/state", StateView).engines)
    finally:
        client.close()
    sent = (
        f"sent to {engines} engine{'s' * (engines != 1)}"
        if engines
        else "no engine is connected: it applies when one comes"
    )
    say(f"mode {settings['mode']} (revision {settings['revision']}): {sent}")


def client_of(api: str | None, config: Path | None) -> ApiClient:
    """A client of the controller that the flags and the configuration name."""
    tree = load_config(file=config)
    return ApiClient(api or f"http://127.0.0.1:{tree.http.port}", token=tree.http.credential)


def _person() -> str:
    """Who switches, for the record: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:200]


class _Screen(msgspec.Struct, frozen=True):
    shown: Group
    level: Level
    """The worst of all findings."""


def _screen(client: ApiClient) -> _Screen:
    state = _asked(client, "/api/state", StateView)
    now = _asked(client, "/api/now", NowView)
    queue = _asked(client, "/api/queue", QueueView, limit=5000)
    ended = _asked(client, "/api/finished", FinishedView, seconds=WINDOW_S, limit=REQUESTS_COUNTED)
    parts: list[Text | Table] = [*_heading(state, now, client.base_url), _figures(state, ended)]
    if now.demand is not None:
        parts.append(Text(_demand(now.demand)))
    parts.append(_engines(now))
    if any(row.state == "waiting" for row in queue.rows):
        parts.append(_queue(queue))
    parts.extend(_events(now))
    return _Screen(Group(*parts), level=now.verdict.level)


def _asked(client: ApiClient, path: str, kind: type[Answer], **parameters: float) -> Answer:
    return msgspec.convert(client.get(path, **parameters), kind)


def _heading(state: StateView, now: NowView, address: str) -> Iterator[Text]:
    """Which controller, the verdict, and for each finding what to do."""
    controller = state.controller
    up = span(controller.now_s - controller.started_s)
    yield Text(
        f"sagesched {controller.version}   mode {controller.mode}   policy {controller.policy}   up {up}   {address}",
        style="bold",
    )
    verdict = now.verdict
    yield Text(f"{WORDS[verdict.level]}: {verdict.text}", style=f"bold {STYLES[verdict.level]}")
    for found in verdict.findings:
        yield Text(f"! {found.title}. {found.text} {found.do}".rstrip(), style=STYLES[found.level])


def _demand(demand: DemandNow) -> str:
    return f"{demand.arrived_per_s:.3g} requests/s in, {demand.ended_per_s:.3g} out. {demand.text}"


def _events(now: NowView) -> Iterator[Text]:
    for event in now.events[:EVENTS_SHOWN]:
        yield Text(f"{span(now.time_s - event.time_s)} ago: {event.text}", style="dim")


def _figures(state: StateView, ended: FinishedView) -> Text:
    """Latency of the requests that ended lately, and how many lengths were within their predicted bounds."""
    ttlt_s = [point.ttlt_s for point in ended.finished if point.ttlt_s is not None]
    if not ttlt_s:
        return Text(f"no request has ended in the last {span(WINDOW_S)}")
    ttft_s = [point.ttft_s for point in ended.finished if point.ttft_s is not None]
    which = (
        f"latest {count(len(ttlt_s))} requests"
        if len(ended.finished) == REQUESTS_COUNTED
        else f"last {span(WINDOW_S)}: {count(len(ttlt_s))} requests"
    )
    line = f"{which}: TTFT {_percentiles(ttft_s)}, E2E {_percentiles(ttlt_s)}"
    inside = state.learner.coverage_90
    return Text(line if inside is None else f"{line}; {percent(inside)} of lengths inside the predicted 90% range")


def _percentiles(values_s: list[float]) -> str:
    if len(values_s) < 2:
        return span(values_s[0]) if values_s else DASH
    cuts = quantiles(values_s, n=100, method="inclusive")
    return f"P50 {span(cuts[49])} P99 {span(cuts[98])}"


def _engines(now: NowView) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, narrowest in (("engine", 14), ("model", 8), ("version", 7), ("state", 9)):
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=narrowest)
    for name, narrowest in (("waiting", 7), ("running", 7), ("KV", 5), ("tokens/s", 8), ("TTFT P99", 8)):
        table.add_column(name, justify="right", no_wrap=True, min_width=narrowest)
    for engine in now.engines:
        table.add_row(*(Text(cell) for cell in _cells(engine)))
    return table


def _cells(engine: EngineNow) -> tuple[str, ...]:
    state = engine.state.upper() if engine.state in {"lost", "silent", "fallback"} else engine.state
    figures = (
        *(count(engine.waiting, ""), count(engine.running, "")),
        *("" if engine.kv_share is None else percent(engine.kv_share), count(engine.output_tokens_per_s, "")),
        "" if engine.ttft_p99_s is None else span(engine.ttft_p99_s),
    )
    return (engine.engine_id, engine.model, engine.version, state, *figures)


def _queue(queue: QueueView) -> Table:
    waiting = [row for row in queue.rows if row.state == "waiting"]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"next of {count(len(waiting))} waiting", title_justify="left"
    )
    for name in ("request", "engine", "waited", "prompt", "predicted tokens", "90% below"):
        table.add_column(
            name, overflow="ellipsis", no_wrap=True, justify="left" if name in {"request", "engine"} else "right"
        )
    for row in sorted(waiting, key=lambda row: row.position)[:QUEUE_ROWS]:
        cells = (row.request_id, row.engine_id, span(row.age_s), count(row.prompt_tokens))
        table.add_row(*(Text(cell) for cell in (*cells, count(row.p50_tokens), count(row.p90_tokens))))
    return table
