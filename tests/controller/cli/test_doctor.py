"""`doctor` beside a running controller."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from controller.cli import doctor
from controller.config import load_config
from store.http_api import EngineView, Finding

TAKEN = Finding(name="port", state="note", text="in use", remedy="choose another")


def test_the_doctor_asks_the_running_controller_for_its_engines(
    start_controller: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place of a port that is in use it names the controller, and what to do while no engine is connected."""
    running = start_controller()
    port = running.client.base_url.port
    monkeypatch.setattr(doctor, "examine", lambda _config, **_options: iter([TAKEN]))
    monkeypatch.setattr(doctor, "examine_vllm", lambda: Finding(name="vLLM", state="ok", text="tried here"))
    config = load_config({"http": {"port": port}}, environment={})
    assert doctor.print_findings(config, settings=False) == 0
    text = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}, mode on, history in {running.store}" in text
    assert "[ note] engines: none is connected" in text
    assert "--scheduler-cls" in text
    assert "in use" not in text
    assert "] vLLM: tried here" in text
    assert text.endswith("1 note\n")
    driven = running.connect(engine_id="gpu-a")
    driven.submit("r1", output_tokens=400)
    until_s = time.monotonic() + 20.0
    while not running.client.get("/api/state").json()["engines"]:
        assert time.monotonic() < until_s
        driven.step()
    assert doctor.print_findings(config, settings=True) == 0
    text = capsys.readouterr().out
    assert "[   ok] engines: gpu-a (simulated" in text
    assert "  store.seal_interval_s = " in text
    assert text.endswith("all is well\n")


@pytest.mark.parametrize(
    ("told", "state"),
    [("all names and 15 behaviours hold", "ok"), ("Scheduler.schedule is gone: it serves in its own order", "wrong")],
)
def test_what_an_engine_told_of_its_vllm_is_not_tried_again(
    told: str, state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Importing vLLM takes seconds; the engine that runs has done so."""
    engine = EngineView(
        engine_id="gpu-a",
        session_id="s",
        model="m",
        engine="vllm",
        engine_version="0.32.0",
        contract=told,
        connected=True,
        last_seen_s=1.0,
        kv_blocks=9,
        block_size_tokens=16,
        max_num_seqs=8,
        unfinished=0,
        tables_sent=0,
        snapshot=None,
    )
    running = SimpleNamespace(version="0.2.0", mode="on", store_path="/h")
    monkeypatch.setattr(
        doctor, "_state", lambda _config: SimpleNamespace(controller=running, degraded=(), engines=(engine,))
    )
    monkeypatch.setattr(doctor, "examine", lambda _config, **_options: iter([TAKEN]))
    monkeypatch.setattr(doctor, "examine_vllm", lambda: pytest.fail("vLLM is imported again"))
    assert doctor.print_findings(load_config(environment={}), settings=False) == (state == "wrong")
    text = capsys.readouterr().out
    assert f"[{state:>5}] vLLM: 0.32.0 of gpu-a: {told}\n" in text
    assert ("docs/compatibility.md" in text) == (state == "wrong")


def test_a_port_that_something_else_has_taken_stays_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that speaks for a controller answers there."""
    monkeypatch.setattr(doctor, "examine", lambda _config, **_options: iter([TAKEN]))
    monkeypatch.setattr(doctor, "examine_vllm", lambda: Finding(name="vLLM", state="ok", text="tried here"))
    assert doctor.print_findings(load_config({"http": {"port": 9}}, environment={}), settings=False) == 0
    assert "[ note] port: in use\n        -> choose another" in capsys.readouterr().out
