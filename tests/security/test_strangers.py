"""Callers over TCP that connect and never prove who they are: bounded, dropped, and no harm to those who are known."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, Popen

import httpx
import pytest

from engine_adapter.serving.processes import free_port
from engine_adapter.transport.authorized_engines import authorize
from engine_adapter.transport.keys import create_controller_keys, create_engine_key
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine

pytestmark = pytest.mark.slow

FILES = 1024
FLOOD_S = 10.0
HELD = 700
"""Connections that the strangers hold at a time, as the test's own open files allow."""


@contextlib.contextmanager
def strangers(port: int) -> Iterator[list[int]]:
    """Connect again and again and say nothing; yields the number of connections that were made."""
    made, stopping = [0], threading.Event()

    def flood() -> None:
        held: deque[socket.socket] = deque()
        while not stopping.is_set():
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
            held.append(caller)
            made[0] += 1
            if len(held) > HELD:
                held.popleft().close()
            time.sleep(0.0005)
        for caller in held:
            caller.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield made
    finally:
        stopping.set()
        thread.join()


@contextlib.contextmanager
def controller(folder: Path, port: int, http: int) -> Iterator[httpx.Client]:
    """`sagesched serve` in a process that may have 1,024 files open and no more."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES})); "
    arguments = [
        *("serve", "--mode", "on", "--store", str(folder / "history"), "--endpoint", f"tcp://127.0.0.1:{port}"),
        *("--port", str(http), "--config", str(folder / "config.toml")),
    ]
    (folder / "config.toml").write_text(f'[engine]\nkeys = "{folder / "keys"}"\n')
    code = f"{limit}from controller.cli.main import run; raise SystemExit(run({arguments!r}))"
    process = Popen([sys.executable, "-c", code], stdout=DEVNULL, stderr=DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=10.0, transport=httpx.HTTPTransport()) as client:
        try:
            until_s = time.monotonic() + 60.0
            while time.monotonic() < until_s:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                time.sleep(0.2)
            yield client
        finally:
            process.terminate()
            process.wait(30.0)


def test_strangers_who_never_speak_do_not_disturb_engines(tmp_path: Path) -> None:
    """With 1,024 open files: order stays in force, the history is written, and a new engine gets in afterwards."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft < 0 or soft > HELD + 200, "the test needs open files of its own: ulimit -n 1024"
    port, http = free_port(0), free_port(0)
    public = create_controller_keys(tmp_path / "keys").public
    keys = [create_engine_key(name, public) for name in ("gpu-1", "gpu-2")]
    for name, key in zip(("gpu-1", "gpu-2"), keys, strict=True):
        authorize(tmp_path / "keys", name, key.pair.public)
    with controller(tmp_path, port, http) as client:
        link = ZmqLink(f"tcp://127.0.0.1:{port}", keys[0])
        profile = PROFILES["h800-qwen3-32b-24k"]
        engine = SimulatedEngine(profile, link=link, engine_id="gpu-1", session_id="s1", start_s=time.time())
        step_until(engine, lambda: engine.agent.mode(engine.now_s) == "on", 20.0)
        modes: set[str] = set()
        states: set[str] = set()
        with strangers(port) as made:
            flooded_until_s = time.monotonic() + FLOOD_S
            number = 0
            while time.monotonic() < flooded_until_s:
                number += 1
                engine.submit(request(f"r{number}", engine.now_s))
                step_until(engine, lambda: True, 0.05)
                modes.add(engine.agent.mode(engine.now_s))
                if number % 20 == 0:
                    states |= set(client.get("/readyz").json()["degraded"])
            flooded = client.get("/metrics").text
        assert made[0] > 2 * FILES
        assert modes == {"on"}
        assert "connection_flood" in states
        for metric in ("sagesched_store_errors_total", "sagesched_tick_errors_total"):
            assert f"{metric} 0.0" in flooded
        assert "sagesched_store_commits_total 0.0" not in flooded
        step_until(engine, lambda: not engine.agent.unacknowledged, 20.0)
        late = ZmqLink(f"tcp://127.0.0.1:{port}", keys[1])
        second = SimulatedEngine(profile, link=late, engine_id="gpu-2", session_id="s2", start_s=time.time())
        step_until(second, lambda: second.agent.mode(second.now_s) == "on", 20.0)
        link.close()
        late.close()


def request(name: str, arrival_s: float) -> TraceRequest:
    tokens = tuple(range(30))
    return TraceRequest(request_id=name, arrival_s=arrival_s, token_ids=tokens, max_tokens=50, true_output_tokens=3)


def step_until(engine: SimulatedEngine, condition: object, wait_s: float) -> None:
    """Step in real time until a condition holds."""
    assert callable(condition)
    until_s = time.monotonic() + wait_s
    while True:
        if engine.now_s < time.time():
            engine.advance_to(time.time())
        engine.step()
        time.sleep(max(0.002, engine.now_s - time.time()))
        if condition():
            return
        assert time.monotonic() < until_s, f"not so after {wait_s:g} s: {engine.agent.fallback(engine.now_s)}"
