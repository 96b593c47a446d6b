"""What is attacked: vLLM on the virtual GPU, controller, dashboard and a telemetry sink, each a process or server here."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

from engine_adapter.serving.processes import Child, Children, free_port
from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.transport.authorized_engines import authorize
from engine_adapter.transport.keys import (
    create_controller_keys,
    create_engine_key,
    make_private_folder,
    save_engine_key,
)
from engine_adapter.virtual_time.profiles import PROFILES

ENGINE = "attacked"
LEASE_S = 2.0
SEAL_S = "0.5"
SPEED = 4.0
PLACES = 8
"""Sequences that the engine runs at once: fewer than clients, so that there is an order."""
TOKEN, READ_TOKEN = "a-token-that-may-switch-modes", "a-token-that-may-only-look"
OPEN_FILES = 1024
"""What a shell usually allows a process; the controller may raise it."""
STEPPED_CLOCK = Path(__file__).parents[1] / "stepped_clock"

Clock = str
"""``engine`` or ``controller``."""


def server_arguments() -> tuple[str, ...]:
    """What stock vLLM and the attacked one are started with."""
    return ("--max-num-seqs", str(PLACES), "--scheduling-policy", "priority")


class Site:
    """All processes of one run, in one folder; started and stopped by the main thread, which they die with."""

    def __init__(self, folder: Path, children: Children, *, tcp: bool) -> None:
        self.folder = folder
        self.history = folder / "history"
        self.socket = folder / "run" / "engine.sock"
        self.keys = folder / "keys"
        self.tcp = tcp
        self.endpoint = f"tcp://127.0.0.1:{free_port(0)}" if tcp else f"ipc://{self.socket}"
        self.port, self.dashboard_port = free_port(0), free_port(0)
        self._children = children
        self.controller: Child | None = None
        self.sink = _Sink()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=httpx.Timeout(4.0),
        )
        for clock in ("engine", "controller"):
            self._clock_file(clock).write_bytes(bytes(8))
        make_private_folder(folder / "run")
        self.server = self._make_server()
        self._engine_pid = 0

    # --- processes ----------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start it on this site's history and endpoint, without waiting for its answers."""
        self.controller = self.start_second("controller", self.history, self.endpoint, self.port)

    def start_second(self, name: str, history: Path, endpoint: str, port: int) -> Child:
        """Start a controller on any history and endpoint."""
        command = [
            *(sys.executable, "-m", "controller", "serve", "--mode", "on", "--objective", "mean"),
            *("--store", str(history), "--endpoint", endpoint, "--port", str(port), "--seal-interval", SEAL_S),
        ]
        environment = {
            "OMP_NUM_THREADS": "1",
            "SAGESCHED_ENGINE__LEASE_S": str(LEASE_S),
            "SAGESCHED_ENGINE__KEYS": str(self.keys),
            "SAGESCHED_LEARNING__GUARD": "false",
            "SAGESCHED_STORE__PROMPTS": "true",
            "SAGESCHED_HTTP__TOKEN": TOKEN,
            "SAGESCHED_HTTP__READ_TOKEN": READ_TOKEN,
            "SAGESCHED_TELEMETRY__ENABLED": "true",
            "SAGESCHED_TELEMETRY__ENDPOINT": self.sink.address,
        }
        few_files = ["sh", "-c", f'ulimit -S -n {OPEN_FILES} && exec "$@"', "sh"]
        return self._children.start(
            name, [*few_files, *command], environment={**environment, **self._clocked("controller")}
        )

    def await_controller(self) -> None:
        """Wait until it answers; raises `EngineError` with the end of its log where it does not."""
        assert self.controller is not None
        self._children.await_ready(
            self.controller, lambda: bool(self.state()), timeout_s=120.0, clock=time.monotonic, pause=time.sleep
        )

    def start_dashboard(self) -> None:
        """Start the dashboard beside the controller."""
        api = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "dashboard", "--api", api, "--port", str(self.dashboard_port)]
        self._children.start("dashboard", command, environment={"SAGESCHED_HTTP__TOKEN": TOKEN})

    def send_signal(self, number: signal.Signals) -> None:
        """Send the controller a signal."""
        assert self.controller is not None
        self.controller.process.send_signal(number)

    def send_engine_signal(self, number: signal.Signals) -> None:
        """Send vLLM's engine core a signal."""
        os.kill(self._engine_pid, number)

    def end_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the controller, kindly or not, whether it is stopped or its disk is full."""
        assert self.controller is not None
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)
        self.controller.process.wait(60.0)

    def controller_ended(self) -> str:
        """The last words of a controller that is not running; empty while it is."""
        assert self.controller is not None
        return "" if self.controller.running else f"the controller has ended: {self.controller.last_lines(8)}"

    def limit_files(self, largest_bytes: int | None) -> None:
        """Have the system refuse what the controller writes beyond this offset of a file; None for nothing."""
        assert self.controller is not None
        unlimited = resource.RLIM_INFINITY
        limit = unlimited if largest_bytes is None else largest_bytes
        resource.prlimit(self.controller.process.pid, resource.RLIMIT_FSIZE, (limit, unlimited))

    # --- clocks -------------------------------------------------------------------------------------

    def set_clock(self, clock: Clock, ahead_s: float) -> None:
        """Step the wall clock of the engine's or the controller's machine; steady clocks go on."""
        with self._clock_file(clock).open("r+b") as file:
            file.write(struct.pack("d", ahead_s))

    def _clock_file(self, clock: Clock) -> Path:
        return self.folder / f"clock.{clock}"

    def _clocked(self, clock: Clock) -> dict[str, str]:
        path = os.pathsep.join([str(STEPPED_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {"PYTHONPATH": path, "STEPPED_CLOCK": str(self._clock_file(clock))}

    # --- what it says of itself -----------------------------------------------------------------------

    def ask(self, path: str) -> httpx.Response | None:
        """The API's answer; None where none came."""
        try:
            return self.http.get(path)
        except httpx.HTTPError:
            return None

    def state(self) -> dict[str, Any]:
        """``/api/state``; empty while it does not answer."""
        answer = self.ask("/api/state")
        found: dict[str, Any] = answer.json() if answer is not None and answer.is_success else {}
        return found

    def snapshot(self) -> dict[str, Any]:
        """The newest snapshot of the engine while it is connected."""
        engines = self.state().get("engines", ())
        found = (e["snapshot"] for e in engines if e["engine_id"] == ENGINE and e["connected"] and e["snapshot"])
        return next(found, {})

    def ordered(self) -> bool:
        """Whether the engine takes orders."""
        snapshot = self.snapshot()
        return bool(snapshot) and snapshot["mode"] == "on" and snapshot["fallback"] is None

    def degraded(self) -> set[str]:
        """What ``/readyz`` says is amiss; empty while it does not answer."""
        answer = self.ask("/readyz")
        return set(answer.json()["degraded"]) if answer is not None and answer.is_success else set()

    def metric(self, name: str) -> float:
        """A metric without labels; 0 where it is not shown."""
        answer = self.ask("/metrics")
        lines = answer.text.splitlines() if answer is not None else []
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def engine_log(self) -> str:
        """What vLLM has logged."""
        return self.server.log_path.read_text(errors="replace")

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the controller and of vLLM's engine core."""
        pids = {"controller": self.controller.process.pid if self.controller else 0, "engine": self._engine_pid}
        found = {name: psutil.Process(pid) for name, pid in pids.items() if psutil.pid_exists(pid)}
        return {name: process.memory_info().rss for name, process in found.items()}

    def start_engine(self) -> None:
        """Start vLLM and wait until it is ready."""
        self.server.start()
        assert self.server._child is not None
        family = psutil.Process(self.server._child.process.pid).children(recursive=True)
        self._engine_pid = next(child.pid for child in family if "EngineCore" in " ".join(child.cmdline()))

    def close(self) -> None:
        """End what the children do not cover."""
        self.http.close()
        self.sink.close()

    def _make_server(self) -> VllmServer:
        # A hint that cannot be used is left out: the answers must be those of stock, which reads none.
        environment = {**self._clocked("engine"), "SAGESCHED_HINTS": "ignore"}
        if self.tcp:
            environment["SAGESCHED_KEY_FILE"] = str(self._key_file())
        return VllmServer(
            endpoint=self.endpoint,
            engine_id=ENGINE,
            profile=PROFILES["h800-qwen3-32b-24k"],
            speed=SPEED,
            prefix_caching=True,
            arguments=server_arguments(),
            environment=environment,
            log_path=self.folder / "vllm.log",
            ready_s=400.0,
        )

    def _key_file(self) -> Path:
        public = create_controller_keys(self.keys).public
        key, file = create_engine_key(ENGINE, public), self.keys / "engine.key"
        authorize(self.keys, ENGINE, key.pair.public)
        save_engine_key(file, key)
        return file


class _Sink:
    """A telemetry collector that takes what it is sent, and fails now and then."""

    def __init__(self) -> None:
        self.received = 0
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                sink.received += 1
                self.send_response(503 if sink.received % 5 == 0 else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait_for(holds: Callable[[], object], within_s: float) -> float | None:
    """Wait until something holds; the seconds it took, or None if it did not within the time."""
    began_s = time.monotonic()
    while True:
        if holds():
            return time.monotonic() - began_s
        if time.monotonic() - began_s > within_s:
            return None
        time.sleep(0.1)


def remove(folder: Path) -> None:
    """Remove a folder under whoever uses it."""
    shutil.rmtree(folder, ignore_errors=True)
