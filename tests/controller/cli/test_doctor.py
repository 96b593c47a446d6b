"""`doctor` beside a running controller."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from controller.cli import doctor
from controller.config import load_config
from store.http_api import Finding


def test_the_doctor_asks_the_running_controller_for_its_engines(
    start_controller: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place of a port that is in use it names the controller, and what to do while no engine is connected."""
    running = start_controller()
    port = running.client.base_url.port
    taken = Finding(name="port", state="note", text="in use", remedy="choose another")
    monkeypatch.setattr(doctor, "examine", lambda _config, **_options: iter([taken]))
    config = load_config({"http": {"port": port}}, environment={})
    assert doctor.print_findings(config, settings=False) == 0
    text = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}, mode on, history in {running.store}" in text
    assert "[ note] engines: none is connected" in text
    assert "--scheduler-cls" in text
    assert "in use" not in text
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


def test_a_port_that_something_else_has_taken_stays_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that speaks for a controller answers there."""
    taken = Finding(name="port", state="note", text="in use", remedy="choose another")
    monkeypatch.setattr(doctor, "examine", lambda _config, **_options: iter([taken]))
    assert doctor.print_findings(load_config({"http": {"port": 9}}, environment={}), settings=False) == 0
    assert "[ note] port: in use\n        -> choose another" in capsys.readouterr().out
