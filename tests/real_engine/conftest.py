"""What the tests of a real vLLM server share: a real controller process beside it, and a look into its history."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from controller.api.client import ApiClient
from engine_adapter.serving.processes import Child, Children, free_port
from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from store.errors import SageError

PATIENCE_S = 120.0


class Site:
    """A controller process, which may be killed and started again, and the history that it writes."""

    def __init__(self, folder: Path, children: Children, lease_s: float) -> None:
        self.catalog = folder / "history" / "catalog.duckdb"
        self.endpoint = f"ipc://{folder}/run/engine.sock"
        self._children = children
        self._lease_s = lease_s
        self._port = free_port(0)
        self.api = ApiClient(f"http://127.0.0.1:{self._port}")
        self._controller: Child | None = None

    def start_controller(self) -> None:
        command = [
            *(sys.executable, "-m", "controller", "serve", "--mode", "on", "--objective", "mean"),
            *("--store", str(self.catalog.parent), "--endpoint", self.endpoint),
            *("--port", str(self._port), "--seal-interval", "0.5"),
        ]
        environment = {"OMP_NUM_THREADS": "1", "SAGESCHED_ENGINE__LEASE_S": str(self._lease_s)}
        self._controller = self._children.start("controller", command, environment=environment)
        self.wait_for(lambda: self._state() is not None, "the controller to answer")

    def kill_controller(self) -> None:
        assert self._controller is not None
        self._controller.process.send_signal(signal.SIGKILL)
        self._controller.process.wait()

    def hang_controller(self) -> None:
        assert self._controller is not None
        self._controller.process.send_signal(signal.SIGSTOP)

    def resume_controller(self) -> None:
        assert self._controller is not None
        self._controller.process.send_signal(signal.SIGCONT)

    def snapshot(self) -> dict[str, Any]:
        """The newest snapshot of the engine that is connected; empty when there is none."""
        state = self._state()
        engines = state["engines"] if state else []
        return next((engine["snapshot"] for engine in engines if engine["connected"] and engine["snapshot"]), {})

    def shows(self, **values: object) -> bool:
        """Whether the newest snapshot has these values."""
        snapshot = self.snapshot()
        return bool(snapshot) and all(snapshot[name] == value for name, value in values.items())

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the catalog, read with plain DuckDB."""
        if not self.catalog.exists():
            return []
        with duckdb.connect(self.catalog, read_only=True) as connection:
            connection.execute(f"SET file_search_path = '{self.catalog.parent}'")
            found = connection.execute(sql)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def lives(self, response_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The lives of the engine's requests behind an answer, once so many have ended and can be seen."""
        found: list[dict[str, Any]] = []

        def ended() -> bool:
            found[:] = self.query(f"SELECT * FROM requests WHERE contains(request_id, '{response_id}')")
            return len([life for life in found if life["finished_s"] is not None]) >= count

        self.wait_for(ended, f"{count} lives of {response_id} in the history")
        return found

    def wait_for(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds; fails with what the controller shows and logs."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline_s:
                log = self._controller.last_lines() if self._controller else ""
                pytest.fail(f"waited {PATIENCE_S:g} s for {what}\nsnapshot: {self.snapshot()}\ncontroller: {log}")
            time.sleep(0.05)

    def connect(self, server: VllmServer) -> None:
        """Have the engine take orders; an idle vLLM does not look, so that requests must wake it."""

        def on() -> bool:
            complete(server, prompt="ten", max_tokens=2)
            return self.shows(mode="on")

        self.wait_for(on, "the engine to take orders")

    def _state(self) -> dict[str, Any] | None:
        try:
            return self.api.get("/api/state")
        except SageError:
            return None


def complete(server: VllmServer, **body: object) -> dict[str, Any]:
    """One completion, which must succeed."""
    url = f"{server.base_url}/v1/completions"
    response = httpx.post(url, json={"model": MODEL_NAME, **body}, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def response_id(request_id: str) -> str:
    """The name of the answer that a request of the engine belongs to."""
    found = re.match("cmpl-[0-9a-f]+", request_id)
    assert found, request_id
    return found[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, lease_s: float) -> Iterator[Site]:
    """A site, with the module's own ``lease_s``, whose controller runs; every process ends with the module's tests."""
    folder = tmp_path_factory.mktemp("site")
    with Children(folder) as children:
        site = Site(folder, children, lease_s)
        site.start_controller()
        yield site
        site.api.close()


@pytest.fixture(scope="session")
def ask() -> Callable[..., dict[str, Any]]:
    """`complete`."""
    return complete


@pytest.fixture(scope="session")
def answer_of() -> Callable[[str], str]:
    """`response_id`."""
    return response_id
