from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.api_client import ApiClient
from controller.processes import Child, Children, end, free_port
from store.errors import SageError


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Poll; the machine may be busy, so limits are generous and the usual wait is short."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"not so after {timeout_s:g} s"
        time.sleep(0.1)


class Site:
    """One machine's worth of real processes: a controller, which may be killed and started again, and an engine."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.store = folder / "history"
        self.endpoint = f"ipc://{folder}/run/engine.sock"
        self.port = free_port(0)
        self.api = ApiClient(f"http://127.0.0.1:{self.port}")
        self._children = children

    def start_controller(self, *arguments: str) -> Child:
        command = [
            *(sys.executable, "-m", "controller", "serve", "--store", str(self.store), "--endpoint", self.endpoint),
            *("--port", str(self.port), "--seal-interval", "0.5", *arguments),
        ]
        child = self._children.start("controller", command, environment={"OMP_NUM_THREADS": "1"})
        wait_until(lambda: self.ask("/readyz") is not None)
        return child

    def start_engine(self, *arguments: str) -> Child:
        command = [sys.executable, "-m", "engine_adapter.simulated_server", "--endpoint", self.endpoint, *arguments]
        return self._children.start("engine", command, environment={"OMP_NUM_THREADS": "1"})

    def start(self, name: str, command: list[str]) -> Child:
        return self._children.start(name, command)

    def ask(self, path: str) -> dict[str, Any] | None:
        try:
            return self.api.get(path)
        except SageError:
            return None

    def engine_mode(self) -> str | None:
        """The mode in force in the engine, as its last snapshot says."""
        state = self.ask("/api/state")
        snapshots = [e["snapshot"] for e in state["engines"] if e["connected"] and e["snapshot"]] if state else []
        return snapshots[0]["mode"] if snapshots else None

    def stop(self, child: Child) -> int:
        return end(child.process, wait_s=30.0)

    def kill(self, child: Child) -> None:
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()


def last_json(child: Child) -> dict[str, Any]:
    """The JSON object on the last line of a child's output."""
    found: dict[str, Any] = json.loads(child.last_lines(1))
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site in a folder of its own; every process ends with the test."""
    with Children(tmp_path) as children:
        site = Site(tmp_path, children)
        yield site
        site.api.close()


@pytest.fixture
def summary_of() -> Callable[[Child], dict[str, Any]]:
    return last_json


@pytest.fixture
def eventually() -> Callable[..., None]:
    return wait_until
