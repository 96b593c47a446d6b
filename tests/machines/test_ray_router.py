"""The request router on a local Ray cluster: two replicas of a small deployment, one thirty times as slow."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from controller.api.client import ApiClient
from engine_adapter.serving.processes import Child, Children, free_port
from store.errors import SageError

pytestmark = pytest.mark.long

Eventually: TypeAlias = Callable[..., None]
SCRIPT = Path(__file__).with_name("ray_cluster.py")
START_S = 240.0
"""Ray starts a dozen processes; on a machine that is busy that takes minutes."""


class Cluster:
    """The cluster's process, which takes orders and answers each with a JSON line."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_SERVE_LOG_TO_STDERR": "0",
        }
        with (folder / "ray.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._log = folder / "ray.log"
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self) -> dict[str, Any]:
        """The next JSON line; what else Ray prints is passed over."""
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            try:
                line = self._lines.get(timeout=1.0)
            except queue.Empty:
                assert self.process.poll() is None, self._log.read_text()[-3000:]
                continue
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError(f"no answer after {START_S:g} s: {self._log.read_text()[-3000:]}")

    def order(self, order: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Let it shut Ray down, which ends its processes; insist if it does not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)


class Controller:
    """A controller process, which may be killed and started again."""

    def __init__(self, folder: Path, children: Children) -> None:
        self._folder = folder
        self._children = children
        self.endpoint = f"ipc://{folder}/run/engine.sock"
        self.port = free_port(0)
        self.api = ApiClient(f"http://127.0.0.1:{self.port}")

    def start(self) -> Child:
        command = [
            *(sys.executable, "-m", "controller", "serve", "--mode", "on", "--store", str(self._folder / "history")),
            *("--endpoint", self.endpoint, "--port", str(self.port)),
        ]
        return self._children.start("controller", command, environment={"OMP_NUM_THREADS": "1"})

    def engines(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self.api.get("/api/state")["engines"]
        except SageError:
            return []
        return [engine for engine in found if engine["connected"]]


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Children(tmp_path) as children:
        controller = Controller(tmp_path, children)
        yield controller
        controller.api.close()


@pytest.fixture
def cluster(tmp_path: Path, controller: Controller) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (extra `ray`): its router cannot be tried")
    cluster = Cluster(tmp_path, f"http://127.0.0.1:{controller.port}", controller.endpoint, str(tmp_path))
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.mark.timeout(900)
def test_requests_go_where_they_are_expected_to_be_complete_first(
    cluster: Cluster, controller: Controller, eventually: Eventually
) -> None:
    """By the controller's forecast the slow replica gets none of an idle cluster's requests; without it, its share.

    Every request is answered, also those that come while the controller is dead, and the router finds it again.
    """
    assert cluster.answer() == {"ready": True}
    blind = cluster.order("send 8")
    assert (sum(blind["served"].values()), blind["routed"]) == (8, 0)
    assert blind["fell_back"] >= 8, "there is no controller: Ray's default routes, and it is counted"

    process = controller.start()
    eventually(lambda: len(controller.engines()) == 2, "both engines")
    seen: dict[str, Any] = {}

    def settled() -> bool:
        """Both replicas have told Ray their engine, both engines' steps are measured."""
        seen.update(cluster.order("send 12"))
        return seen["served"] == {"quick": 12}

    eventually(settled, "the router to know both")
    assert seen["routed"] >= 12
    before = seen["fell_back"]
    burst = cluster.order("burst 24")
    assert sum(burst["served"].values()) == 24
    assert burst["served"]["quick"] > burst["served"].get("slow", 0)
    assert burst["routed"] == seen["routed"] + 24, "each request goes where it was meant to go"

    process.process.kill()
    process.process.wait()
    alone = cluster.order("send 8")
    assert sum(alone["served"].values()) == 8, "no request waits for a dead controller"
    assert alone["fell_back"] >= before + 8
    controller.start()
    eventually(lambda: len(controller.engines()) == 2, "both engines again")
    eventually(lambda: cluster.order("send 2")["routed"] > alone["routed"], "the router to find the controller")
