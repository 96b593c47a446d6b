from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from controller.replay.gain_watcher import GainLimits

pytestmark = pytest.mark.slow

Start = Callable[..., Any]


def test_the_comparison_arrives_and_says_what_it_is(start_controller: Start) -> None:
    """Out of the history, through a process of its own: three latencies over the same requests, with a method."""
    running = start_controller()
    gain = running.service.gain
    gain._limits = GainLimits(interval_s=0.5, first_after_s=0.1, fewest_requests=30, requests=30, share=1.0)
    engine = running.connect()
    for number in range(40):
        engine.submit(f"r{number}", output_tokens=3 + number % 7)
        engine.step()
    engine.step_until(lambda: running.client.get("/api/gain").json()["status"] == "ready", timeout_s=180.0)
    view = running.client.get("/api/gain").json()
    answer = view["gain"]
    assert answer["requests"] >= 30
    assert {"mean_ttlt_s", "p50_ttlt_s", "p90_ttlt_s", "p99_ttlt_s"} <= set(answer["actual"])
    assert set(answer["actual"]) == set(answer["fcfs"]) == set(answer["modelled"])
    assert "simulated engine" in answer["method"]
    assert answer["ratio"]["low"] <= answer["ratio"]["mean"] <= answer["ratio"]["high"]
    assert answer["reproduction"]["mode"] == "on"
    assert set(answer["reproduction"]) == {"mode", "mean_ttlt_error", "p99_ttlt_error", "request_error_s", "poor"}
    assert abs(view["computed_s"] - time.time()) < 60.0


def test_a_failing_comparison_says_so_and_is_tried_again(start_controller: Start) -> None:
    """A deadline that cannot be kept makes the answer unavailable, with the reason, and disturbs nothing."""
    running = start_controller()
    gain = running.service.gain
    gain._limits = GainLimits(interval_s=0.1, first_after_s=0.1, fewest_requests=5, deadline_s=0.01)
    engine = running.connect()
    for number in range(10):
        engine.submit(f"r{number}", output_tokens=3)
    engine.step_until(lambda: running.client.get("/api/gain").json()["status"] == "unavailable", timeout_s=180.0)
    assert "more than 0.01 s" in running.client.get("/api/gain").json()["reason"]
    assert running.client.get("/healthz").json()["status"] == "ok"


def test_a_comparison_has_a_bound_of_memory() -> None:
    """Beyond it the process that compares fails, whatever the machine has."""
    hungry = (
        "from controller.replay import gain_worker as worker; worker.bound_memory(); bytearray(worker.MEMORY_BYTES)"
    )
    run = subprocess.run([sys.executable, "-c", hungry], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr.strip().splitlines()[-1] == "MemoryError"


def test_asking_brings_a_newer_comparison_and_its_cost_delays_the_next(start_controller: Start) -> None:
    """The API's question counts as a look; what the worker's process took is measured, not assumed."""
    running = start_controller()
    gain = running.service.gain
    gain._limits = GainLimits(interval_s=0.1, first_after_s=0.1, fewest_requests=30, share=1.0)
    engine = running.connect()

    def serve(first: int) -> None:
        for number in range(first, first + 40):
            engine.submit(f"r{number}", output_tokens=3 + number % 7)
            engine.step()

    serve(0)
    engine.step_until(lambda: gain.answer.status == "ready", timeout_s=180.0)
    first_s = gain.answer.computed_s
    serve(40)
    engine.step_until(lambda: running.client.get("/api/gain").json().get("computed_s", 0.0) > first_s, timeout_s=180.0)
    assert gain.answer.computed_s - first_s > 0.5, "a process that replays takes at least that of one core"
