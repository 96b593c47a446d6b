from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from controller.config import load_config
from controller.service.service import Service, service
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.virtual_time.engine import CompletedRequest, TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"not so after {timeout_s:g} s"
        time.sleep(0.02)


@dataclass
class RunningController:
    """A controller in this process, on its own endpoint, port and folder, with its loop in a thread."""

    service: Service
    folder: Path
    thread: threading.Thread
    client: httpx.Client
    engines: list[DrivenEngine] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.service.config.store.path

    def connect(self, session_id: str = "s1", engine_id: str = "driven") -> DrivenEngine:
        self.engines.append(DrivenEngine(self.service.config.engine.endpoint, session_id, engine_id))
        return self.engines[-1]

    def close(self) -> None:
        self.service.loop.stop()
        self.thread.join(10.0)
        for engine in self.engines:
            engine.link.close()


class DrivenEngine:
    """A simulated engine that a test steps by hand, over a real socket, on the wall clock."""

    def __init__(self, endpoint: str, session_id: str, engine_id: str) -> None:
        self.link = ZmqLink(endpoint)
        self.engine = SimulatedEngine(
            PROFILES["h800-qwen3-32b-24k"],
            link=self.link,
            engine_id=engine_id,
            session_id=session_id,
            start_s=time.time(),
        )
        self.lives: list[CompletedRequest] = []

    def submit(self, request_id: str, *, output_tokens: int = 20, prompt_tokens: int = 50) -> None:
        self.engine.submit(
            TraceRequest(
                request_id=request_id,
                arrival_s=self.engine.now_s,
                token_ids=tuple(range(prompt_tokens)),
                max_tokens=500,
                true_output_tokens=output_tokens,
            )
        )

    def step(self) -> None:
        """One engine step in real time."""
        if self.engine.now_s < time.time():
            self.engine.advance_to(time.time())
        self.lives.extend(self.engine.step().finished)
        time.sleep(max(0.002, self.engine.now_s - time.time()))

    def step_until(self, condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until_s, f"not so after {timeout_s:g} s"
            self.step()


@pytest.fixture
def start_controller(tmp_path: Path) -> Iterator[Callable[..., RunningController]]:
    """Start controllers; each is stopped at the end of the test."""
    with ExitStack() as stack:

        def start(**flags: object) -> RunningController:
            config = load_config(
                {
                    "mode": "on",
                    "store": {"path": tmp_path / "history", "seal_interval_s": 0.5},
                    "engine": {"endpoint": f"ipc://{tmp_path}/run/engine.sock", "lease_s": 1.0},
                    "http": {"port": 0},
                    **flags,
                },
                environment={},
            )
            opened = stack.enter_context(service(config, clock=time.time, timer=time.perf_counter))
            thread = threading.Thread(target=opened.loop.run, daemon=True)
            client = stack.enter_context(
                httpx.Client(base_url=opened.web.address, timeout=5.0, transport=httpx.HTTPTransport())
            )
            running = RunningController(opened, tmp_path, thread, client)
            stack.callback(running.close)
            thread.start()
            wait_until(lambda: "learning_past" not in client.get("/readyz").json().get("degraded", ["learning_past"]))
            return running

        yield start
