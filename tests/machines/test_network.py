"""Engines on another machine than the controller's: two network namespaces, a cable, CURVE keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from controller.cli.main import run
from engine_adapter.serving.processes import Child

Machines: TypeAlias = Any
"""`conftest.Machines`, which a test module cannot import."""
History: TypeAlias = Any
"""`conftest.History`, likewise."""

PORT = 8701
LOAD = ("--speed", "4", "--rate", "4", "--seed", "3")
IN_ORDER = {"gpu-1": "on", "gpu-2": "on"}


class Site:
    """A controller on one machine and engines with keys on the other."""

    def __init__(self, machines: Machines, folder: Path, python: list[str]) -> None:
        self.machines = machines
        self.folder = folder
        self.keys = folder / "keys"
        self._python = python
        assert run(["keys", "controller", "--keys", str(self.keys)]) == 0

    def start_controller(self) -> Child:
        command = [
            *(
                *self._python,
                "controller",
                "serve",
                "--mode",
                "on",
                "--store",
                str(self.folder / "history"),
                "--port",
                "0",
            ),
            *("--endpoint", f"tcp://{self.machines.controller.address}:{PORT}", "--seal-interval", "0.5"),
        ]
        child: Child = self.machines.controller.start("controller", command, SAGESCHED_ENGINE__KEYS=str(self.keys))
        return child

    def start_stranger(self, engine_id: str) -> Child:
        """An engine with the controller's public key and a key of its own that is not authorized."""
        key = self.folder / f"{engine_id}.key"
        assert run(["keys", "engine", engine_id, "--keys", str(self.keys), "--output", str(key)]) == 0
        kept = key.read_bytes()
        assert run(["keys", "revoke", engine_id, "--keys", str(self.keys)]) == 0
        if not key.exists():
            key.write_bytes(kept)
            key.chmod(0o600)
        return self.start_engine(engine_id)

    def start_engine(self, engine_id: str) -> Child:
        key = self.folder / f"{engine_id}.key"
        if not key.exists():
            assert run(["keys", "engine", engine_id, "--keys", str(self.keys), "--output", str(key)]) == 0
        command = [
            *(*self._python, "engine_adapter.serving.simulated_server", "--key-file", str(key), *LOAD),
            *("--endpoint", f"tcp://{self.machines.controller.address}:{PORT}"),
        ]
        child: Child = self.machines.engines.start(engine_id, command)
        return child


@pytest.mark.timeout(900)
def test_engines_on_another_machine_outlive_the_cable_and_the_controller(
    machines: Machines, history: History, tmp_path: Path, python: list[str], eventually: Callable[..., None]
) -> None:
    """Pulled cable, then SIGKILL of the controller, under load: both engines serve on, are ordered again, lose no fact.

    A third engine, whose key was revoked, serves by itself beside them, and nothing of it is recorded.
    """
    site = Site(machines, tmp_path, python)
    controller = site.start_controller()
    engines = {engine_id: site.start_engine(engine_id) for engine_id in IN_ORDER}
    stranger = site.start_stranger("gpu-9")
    eventually(lambda: history.modes() == IN_ORDER, "order on both engines")
    eventually(lambda: "not authorized" in (tmp_path / "controller.log").read_text(), "the refusal in the log")

    machines.plug(connected=False)
    pulled_s = time.time()
    eventually(lambda: all(history.events(name)[-1] == "lost" for name in engines), "the controller to notice")
    noticed_s = time.time()
    machines.plug(connected=True)
    eventually(lambda: all(history.events(name)[-1] == "reconnected" for name in engines), "the engines to come back")
    back_s = time.time()
    eventually(lambda: history.rows(_alone(pulled_s + 2.5, noticed_s))[0][0] > 0, "facts of the time apart")

    controller.process.kill()
    controller.process.wait()
    killed_s = time.time()
    controller = site.start_controller()
    eventually(lambda: history.rows(_in_order_since(killed_s))[0][0] == 2, "order again on both")
    again_s = time.time()
    eventually(lambda: history.rows(_ended_since(again_s))[0][0] == 2, "all that the engines had to tell")

    assert stranger.running, stranger.last_lines()
    summaries = {}
    for name, engine in engines.items():
        assert engine.running, engine.last_lines()
        assert engine.end(wait_s=60.0) == 0, engine.last_lines()
        summaries[name] = json.loads(engine.last_lines(1))
    assert controller.end(wait_s=60.0) == 0, controller.last_lines()
    served = history.rows("SELECT engine_id, count(*), count(DISTINCT request_id) FROM completions GROUP BY ALL")
    assert {name for name, _, _ in served} == set(engines)
    for name, recorded, different in served:
        summary = summaries[name]
        assert recorded == different, "each life is told once"
        # On a busy machine the last second's facts may miss the engine's farewell; they are counted, not lost unseen.
        assert (
            summary["requests_finished"] - summary["facts_unacknowledged"] <= recorded <= summary["requests_finished"]
        )
    assert history.rows("SELECT count(*) FROM engines WHERE engine_id = 'gpu-9'") == [(0,)]
    print(  # noqa: T201 - with -s, the figures for the documents
        f"pulled cable noticed after {noticed_s - pulled_s:.1f} s, back {back_s - noticed_s:.1f} s after it was put in;"
        f" killed controller: order again after {again_s - killed_s:.1f} s"
    )


def _alone(since_s: float, until_s: float) -> str:
    """Requests that ended while no controller could hear of it."""
    return f"SELECT count(*) FROM completions WHERE time_s BETWEEN {since_s} AND {until_s}"


def _ended_since(since_s: float) -> str:
    """Engines of which the end of a request after a moment is recorded, and so, in their order, all before."""
    return f"SELECT count(DISTINCT engine_id) FROM completions WHERE time_s > {since_s}"


def _in_order_since(since_s: float) -> str:
    """Engines that serve in our order after a moment."""
    return f"SELECT count(DISTINCT engine_id) FROM snapshots WHERE mode = 'on' AND time_s > {since_s}"
