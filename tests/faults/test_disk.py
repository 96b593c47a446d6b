"""A disk that takes nothing, or has lost something, under a controller that an engine is served by.

The system refuses a process's writes by a limit on the size of its files, which can be lifted again: no test needs to
mount anything.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from store.history.reader import open_history

Engine: TypeAlias = Any
"""`conftest.LoadedEngine`, which a test module cannot import."""

Controller: TypeAlias = Any
"""`conftest.Controller`."""


def wait_until(holds: Callable[[], object], what: str) -> float:
    """Wait for something, which the API may not answer yet; the seconds that it took."""
    started_s = time.monotonic()
    while True:
        try:
            if holds():
                return time.monotonic() - started_s
        except httpx.HTTPError:
            pass
        assert time.monotonic() - started_s < 240.0, what
        time.sleep(0.1)


def store_of(controller: Controller) -> dict[str, Any]:
    """How the writer of the history fares."""
    found: dict[str, Any] = controller.get("/api/state")["store"]
    return found


def recent_warnings(controller: Controller, words: str) -> list[str]:
    """What the controller has logged with these words in it."""
    found = controller.get("/api/health")["recent_warnings"]
    return [said["text"] for said in found if words in said["text"]]


@pytest.mark.parametrize("largest_bytes", [0, 100_000], ids=["no write succeeds", "no file grows"])
def test_a_disk_that_takes_nothing(
    controller: Controller, simulated: Engine, largest_bytes: int, record_property: Callable[..., None]
) -> None:
    """Decisions go on; it is logged once, counted and shown; when it takes writes again, no fact is missing."""
    controller.start_process()
    wait_until(lambda: store_of(controller)["rows"].get("completions", 0) > 0, "facts on the disk")
    simulated.await_mode("on")
    controller.limit_files(largest_bytes)
    record_property("seen_s", wait_until(lambda: store_of(controller)["last_error"], "the trouble to be shown"))
    predictions = controller.get("/api/state")["learner"]["predictions"]
    simulated.await_answers(24)
    simulated.await_mode("on")
    assert controller.get("/api/state")["learner"]["predictions"] > predictions, "decisions go on"
    for path in ("/api/finished", "/api/latency", "/api/load", "/api/requests/r1"):
        answer = controller.ask(path)
        assert answer.status_code == 503, path
        assert "the recent past is unknown while history" in answer.json()["error"]
    assert "sagesched_store_failing 1.0" in controller.get("/metrics")
    assert store_of(controller)["errors"] > 0
    assert len(recent_warnings(controller, "cannot be written")) == 1
    controller.limit_files(None)
    record_property("recovery_s", wait_until(lambda: store_of(controller)["last_error"] is None, "recovery"))
    wait_until(lambda: simulated.unacknowledged() < 100, "the facts of the meantime to be durable")
    assert "sagesched_store_failing 0.0" in controller.get("/metrics")
    assert len(recent_warnings(controller, "is written again")) == 1
    assert controller.get("/api/finished")["finished"], "the recent past is known again"
    answers = simulated.answers()
    wait_until(lambda: _completions(controller.history)[0] >= answers, "all answers in the history")
    found, distinct = _completions(controller.history)
    assert found == distinct


def _completions(history: Path) -> tuple[int, int]:
    with open_history(history) as connection:
        found: tuple[int, int] = connection.execute(
            "SELECT count(*), count(DISTINCT request_id) FROM completions"
        ).fetchall()[0]
    return found


def test_a_history_that_has_rotted_does_not_keep_the_controller_from_serving(
    controller: Controller, simulated: Engine
) -> None:
    """It starts without the damaged part, learns from the rest, serves, and says what is missing."""
    controller.start()
    simulated.await_mode("on")
    simulated.await_answers()
    wait_until(lambda: store_of(controller)["rows"].get("outcomes", 0) > 0, "something to learn from")
    controller.stop()
    victim = max(
        (controller.history / "segments" / "outcomes").rglob("*.parquet"), key=lambda file: file.stat().st_size
    )
    victim.write_bytes(bytes(256) + victim.read_bytes()[256:])
    controller.start()
    simulated.await_mode("on")
    simulated.await_answers()
    wait_until(lambda: store_of(controller)["damaged_segments"] == 1, "the damage to be counted")
    assert store_of(controller)["last_error"] is None
    assert "sagesched_store_damaged_segments 1.0" in controller.get("/metrics")
    assert len(recent_warnings(controller, victim.name)) == 1


def test_a_controller_that_cannot_write_at_all_does_not_start(tmp_path: Path) -> None:
    """One line that names the history and the disk's own words; nothing that was there is touched."""
    history = tmp_path / "history"
    history.mkdir(mode=0o700)
    history.joinpath("note").write_text("mine")
    command = [
        *(sys.executable, "-m", "controller", "serve", "--mode", "on", "--store", str(history)),
        *("--endpoint", f"ipc://{tmp_path}/run/engine.sock", "--port", "0"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert str(history) in said
    assert "File too large" in said
    assert history.joinpath("note").read_text() == "mine"
