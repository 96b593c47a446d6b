"""The command line: ``python -m controller ...``, also installed as ``sagesched``.

Only this package reads the real clock, which it passes on, and combines an engine with the controller.
Exit codes: 0 done, 1 something went wrong on the way, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controller.cli.benchmark import add_studies
from controller.cli.help import LOOK, RUN, GroupedHelp
from controller.cli.keys import add_keys
from controller.cli.log import log_to_stderr
from controller.cli.machines import add_machines
from controller.cli.output import say
from controller.cli.plan import add_plan
from controller.cli.replay import add_replay
from controller.cli.status import ApiFlag, ConfigFlag, add_status
from controller.cli.suite import add_suite
from controller.cli.system import add_proofs
from controller.cli.workload import add_workload
from controller.config import Config, load_config, secret
from engine_adapter.agent.clock import steady_clock
from store.errors import BadInputError, SageError
from store.formatting import printable

app = typer.Typer(
    name="sagesched",
    cls=GroupedHelp,
    help="Scheduling controller for vLLM: learns how long answers will be, and orders and admits requests by it.",
    epilog="Example: sagesched serve --mode shadow, then "
    "vllm serve MODEL --scheduler-cls engine_adapter.vllm_scheduler.SageScheduler",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]
"""Typer's root of usage errors, which it does not export by a name of its own."""

ModeName = Literal["off", "shadow", "on"]
StoreFlag = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="folder of the history")]
ModeFlag = Annotated[ModeName | None, typer.Option("--mode", help="off: FCFS; shadow: decide, change nothing; on")]
EndpointFlag = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="ADDRESS", help="where engines connect: ipc:///... or tcp://HOST:PORT"),
]
HostFlag = Annotated[str | None, typer.Option("--host", help="address of the API; not loopback needs a token")]
PortFlag = Annotated[int | None, typer.Option("--port", help="port of the API (8700); 0 takes a free one")]
PolicyFlag = Annotated[str | None, typer.Option("--policy", help="sage, sagesched-paper or fcfs")]
ObjectiveFlag = Annotated[
    Literal["mean", "balanced", "tail"] | None, typer.Option("--objective", help="what the order favors")
]
LogFlag = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="lowest severity that is logged")
]


add_status(app)
add_studies(app)
add_suite(app)
add_proofs(app)
add_replay(app)
add_plan(app)
add_machines(app)
add_keys(app)
add_workload(app)


def main() -> None:
    """Run the command line and exit; bad usage and bad input end in one line and code 2.

    Characters that the output's encoding lacks are shown as escapes: clients choose what some names consist of.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # The caller has closed it, as cron and some supervisors do.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 0
    sys.stderr.flush()
    logging.shutdown()
    atexit._run_exitfuncs()  # noqa: SLF001 - `os._exit` leaves them out, and with them the complaints of native libraries
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        command = typer.main.get_command(app)
        _refuse_non_finite(command)
        code = command.main(args=arguments, prog_name="sagesched", standalone_mode=False)
    except SageError as error:
        return _fail(str(error), 2 if isinstance(error, BadInputError) else 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the reader has gone; nothing may be written at exit
        return 0
    except OSError as error:
        where = f"{error.filename!r:.200}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}: check the path and its permissions", 1)
    except UsageProblem as error:
        return _fail(f"{_message(error)} (see: {_help_of(error)})", 2)
    return code if isinstance(code, int) else 0


def _refuse_non_finite(command: Any) -> None:  # noqa: ANN401 - Typer does not export its own class
    """Reject NaN and infinity for every number of a command and its subcommands, because bounds do not reject NaN."""
    for parameter in command.params:
        parameter.callback = parameter.callback or _finite
    for subcommand in getattr(command, "commands", {}).values():
        _refuse_non_finite(subcommand)


def _finite(_context: object, _parameter: object, value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number: give a finite one")
    return value


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it
    if wanted:
        say(f"sagesched {metadata.version('sagesched-controller')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Flags before the command."""


@app.command(
    epilog="Example: sagesched serve --mode shadow --store /var/lib/sagesched --config sagesched.toml",
    rich_help_panel=RUN,
)
def serve(
    *,
    mode: ModeFlag = None,
    config: ConfigFlag = None,
    store: StoreFlag = None,
    endpoint: EndpointFlag = None,
    host: HostFlag = None,
    port: PortFlag = None,
    policy: PolicyFlag = None,
    objective: ObjectiveFlag = None,
    seal_interval: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="how often history becomes visible to SQL")
    ] = None,
    log_level: LogFlag = "info",
) -> int:
    """Run the controller. It binds the engines' endpoint and HTTP, learns, decides and records."""
    flags = {
        "mode": mode,
        "store": {"path": store, "seal_interval_s": seal_interval},
        "engine": {"endpoint": endpoint},
        "http": {"host": host, "port": port},
        "policy": {"name": policy, "objective": objective},
    }
    tree = load_config(flags, file=config)
    log_to_stderr(log_level)
    return _serve(tree)


@app.command(epilog="Example: sagesched demo --duration 30 --no-dashboard --json", rich_help_panel=RUN)
def demo(
    *,
    engine: Annotated[Literal["simulated", "vllm"], typer.Option(help="which engine serves")] = "simulated",
    duration: Annotated[float | None, typer.Option(min=1.0, help="seconds; without it until Ctrl-C")] = None,
    dashboard: Annotated[bool, typer.Option(help="start the dashboard")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print one summary object as the last line")] = False,
    store: StoreFlag = None,
    speed: Annotated[float, typer.Option(min=0.1, max=100.0, help="engine seconds per second")] = 6.0,
    load: Annotated[
        float, typer.Option(min=0.05, max=5.0, help="mean arrival rate relative to the capacity of FCFS")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="of the workload")] = 1,
    fcfs: Annotated[
        float | None,
        typer.Option(min=0.0, help="seconds of FCFS before mode on; default 40, or a third of the duration"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, envvar="SAGESCHED_HTTP__PORT", help="of the API; default 8700, or any"),
    ] = None,
    dashboard_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of the dashboard; default 8501, or any")
    ] = None,
) -> None:
    """Run everything here, without a GPU. An engine under load, the controller and the dashboard."""
    from controller.demo.demo import DemoSpec, conclusion, run_demo

    spec = DemoSpec(
        engine=engine,
        duration_s=duration,
        dashboard=dashboard,
        store=store,
        speed=speed,
        load=load,
        seed=seed,
        fcfs_s=fcfs,
        port=port,
        dashboard_port=dashboard_port,
    )
    _stop_on_sigterm()
    summary = run_demo(spec, clock=time.time, pause=time.sleep, say=say)
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        installed = shutil.which("sagesched") is not None
        for line in conclusion(summary, "sagesched" if installed else f"{sys.executable} -m controller"):
            say(line)


@app.command(
    epilog="""Example: sagesched sql "SELECT * FROM requests ORDER BY ttlt_s DESC LIMIT 5" --format csv""",
    rich_help_panel=LOOK,
)
def sql(
    query: Annotated[str, typer.Argument(help="one SQL statement over the history")],
    *,
    output: Annotated[Literal["table", "csv", "json", "parquet"], typer.Option("--format", "-f")] = "table",
    file: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="instead of the screen")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000_000, help="rows at most")] = 10_000,
    raw: Annotated[
        bool, typer.Option(help="CSV with text as recorded, which terminals and spreadsheets may obey")
    ] = False,
    store: StoreFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Query the history with SQL. The controller may run meanwhile."""
    from controller.api.client import history_folder
    from controller.cli.sql import run_query

    folder = history_folder(load_config({"store": {"path": store}}, file=config))
    run_query(folder, query, output=output, file=file, row_limit=limit, raw=raw)


@app.command(epilog="Example: sagesched explain cmpl-42 --store /var/lib/sagesched", rich_help_panel=LOOK)
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="the engine's name of the request")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="the sentences and all facts, as one JSON object")] = False,
    api: ApiFlag = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Explain why a request ran when it did. In sentences, from recorded facts.

    Asks the running controller, which also knows the last seconds; without one, or with --store, reads the history.
    """
    from controller.cli.explain import run_explain

    run_explain(request_id, load_config({"store": {"path": store}}, file=config), api=api, store=store, as_json=as_json)


@app.command(epilog="Example: sagesched forget --tenant acme --store /var/lib/sagesched")
def forget(
    *,
    request: Annotated[str | None, typer.Option(metavar="ID", help="the prompts of this request")] = None,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="the prompts of this tenant")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all prompts")] = False,
    store: StoreFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Delete stored prompts from the history. The controller must not run meanwhile.

    A request is named by the id in its answer, or by that in the engine; one that is not recorded is an error.
    """
    from store.history.forget import Whose, forget_prompts

    if sum((request is not None, tenant is not None, everything)) != 1:
        raise BadInputError("none or several of --request, --tenant and --all are given: give one of them")
    path = load_config({"store": {"path": store}}, file=config).store.path
    arrivals = forget_prompts(path, Whose(request_id=request, tenant=tenant), now_s=time.time())
    say(f"deleted the prompts of {arrivals} arrivals from {path}")


@app.command(epilog="Example: sagesched doctor --config sagesched.toml")
def doctor(
    *,
    config: ConfigFlag = None,
    store: StoreFlag = None,
    port: PortFlag = None,
    settings: Annotated[bool, typer.Option("--settings", help="list all settings in force")] = False,
) -> int:
    """Check installation, configuration and engines."""
    from controller.cli.doctor import print_findings

    tree = load_config({"store": {"path": store}, "http": {"port": port}}, file=config)
    return 1 if print_findings(tree, settings=settings) else 0


@app.command(epilog="Example: sagesched dashboard --api http://127.0.0.1:8700 --port 8501", rich_help_panel=RUN)
def dashboard(
    *,
    api: ApiFlag = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="folder of the history (default: as the controller names it)"),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the dashboard")] = 8501,
    host: Annotated[str, typer.Option(help="address of the dashboard; not loopback needs a token")] = "127.0.0.1",
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="name that browsers open it by, such as a proxy's; repeatable"),
    ] = None,
    config: ConfigFlag = None,
) -> int:
    """Start the Streamlit dashboard. Once the API has a token, people log in with it."""
    from controller.demo.demo import dashboard_command

    tree = load_config({"store": {"path": store}}, file=config)
    url = api or f"http://127.0.0.1:{tree.http.port}"
    _stop_on_sigterm()
    named = tree.store.path if "path" in tree.store.model_fields_set else None
    if named is not None and not named.is_dir():
        raise BadInputError(f"folder {str(named)!r} of the history is not there: check --store, or leave it out")
    say(f"dashboard: http://{host}:{port} (controller {url}, history {named or 'as the controller names it'})")
    command = dashboard_command(url, named, port=port, host=host, names=name or ())
    return subprocess.run(command, env={**os.environ, **_for_dashboard(tree)}, check=False).returncode


def _for_dashboard(config: Config) -> dict[str, str]:
    """What the dashboard must know of the configuration and other users must not: flags can be read by all."""
    given = {
        "SAGESCHED_HTTP__TOKEN": secret(config.http.token),
        "SAGESCHED_HTTP__READ_TOKEN": secret(config.http.read_token),
        "SAGESCHED_STORE__PROMPTS": str(config.store.prompts),
    }
    return {name: value for name, value in given.items() if value is not None}


def _serve(config: Config) -> int:
    """Run the controller until SIGTERM, SIGHUP or Ctrl-C; returns 130 after Ctrl-C."""
    from controller.monitoring.surroundings import raise_open_files_limit
    from controller.service.service import service

    log = logging.getLogger("controller")
    os.umask(0o077)
    raise_open_files_limit()
    interrupted = False
    with service(
        config, clock=steady_clock(), timer=time.perf_counter, wall=time.time, cpu_timer=time.thread_time
    ) as running:

        def stop(number: int, _frame: object) -> None:
            nonlocal interrupted
            interrupted = number == signal.SIGINT
            running.loop.stop()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # Not under nohup, which has it ignored.
            signal.signal(signal.SIGHUP, stop)
        log.info("engines connect to %s", running.endpoint)
        log.info("API at %s (docs at /docs)", running.web.address)
        log.info("history in %s, policy %s, mode %s", config.store.path, config.policy.name, config.mode)
        _favour_the_loop()
        running.loop.run()
        log.info("stopping")
    return 130 if interrupted else 0


def _favour_the_loop() -> None:
    """Tune the interpreter so that neither the garbage collector nor another thread delays an arrival for long.

    Objects made so far stay for good and are frozen. What is made for each request is not tracked, or ends without a
    cycle: a collection looks at few objects, takes a few milliseconds and finds next to nothing, of the older ones least.
    A thread gets the interpreter after half a millisecond in place of five.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 100, 50)
    sys.setswitchinterval(0.0005)


def _stop_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that all its child processes are stopped."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _help_of(error: BaseException) -> str:
    """The command line that prints the help of what was used wrongly."""
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'sagesched'} --help"


def _message(error: BaseException) -> str:
    describe: Any = getattr(error, "format_message", None)
    return " ".join(str(describe() if describe else error).split())


def _fail(line: str, code: int) -> int:
    sys.stderr.write(f"sagesched: {printable(line)}\n")
    return code
