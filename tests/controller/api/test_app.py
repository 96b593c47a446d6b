from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from controller.core.core import Counts
from controller.monitoring.metrics import CALIBRATION_GAUGES
from online_learning.length_learner import Drift
from store.history.reader import open_history

Start = Callable[..., Any]


@pytest.mark.slow
def test_an_idle_controller_is_healthy_and_ready(start_controller: Start) -> None:
    """Health, readiness and the OpenAPI page answer before any engine connects."""
    client = start_controller().client
    assert client.get("/healthz").json()["status"] == "ok"
    for probe in ("/healthz", "/readyz"):
        assert (client.head(probe).status_code, client.head(probe).content) == (200, b"")
    assert client.get("/readyz").json() == {"status": "ready", "engines": 0, "degraded": []}
    assert "/api/state" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200
    assert client.get("/api/gain").json()["status"] == "warming up"


@pytest.mark.slow
def test_live_state_follows_an_engine_from_arrival_to_completion(start_controller: Start) -> None:
    """Queue, state and recent past show the requests of a connected engine, and nothing is left when they end."""
    running = start_controller()
    engine = running.connect()
    for number in range(5):
        engine.submit(f"r{number}", output_tokens=40 + number)
    engine.step_until(lambda: len(running.client.get("/api/queue").json()["rows"]) == 5)
    rows = running.client.get("/api/queue", params={"engine_id": "driven", "limit": 3}).json()["rows"]
    assert len(rows) == 3
    assert set(rows[0]) == {
        *("position", "request_id", "engine_id", "state", "priority", "age_s", "prompt_tokens", "attained_tokens"),
        *("index_s", "expected_remaining_tokens", "p50_tokens", "p90_tokens", "cluster"),
        *("service_class", "targets", "starts_in_s", "ends_in_s", "because"),
    }
    engine.step_until(lambda: len(engine.lives) == 5)
    engine.step_until(lambda: len(running.client.get("/api/finished").json()["finished"]) == 5)
    finished = running.client.get("/api/finished").json()["finished"]
    assert {row["request_id"]: row["output_tokens"] for row in finished} == {f"r{n}": 40 + n for n in range(5)}
    assert all(row["p10_tokens"] <= row["p50_tokens"] <= row["p90_tokens"] for row in finished)
    latency = running.client.get(
        "/api/latency", params={"model": running.client.get("/api/state").json()["engines"][0]["model"]}
    ).json()
    assert latency["whole"] == 5
    assert sum(row["requests"] for row in latency["ttlt"]) == 5
    assert running.client.get("/api/latency", params={"part": "class:7"}).json()["whole"] == 0
    levels = running.client.get("/api/service").json()
    assert [(one["name"], one["judged"]) for one in levels["classes"]] == [("default (not configured)", 5)]
    assert levels["tenants"][0]["service_s"] > 0
    assert running.client.get("/api/service", params={"engine_id": "another"}).json()["requests"] == 0
    engine.step_until(lambda: len(running.client.get("/api/load", params={"bins": 600}).json()["points"]) > 0)
    load = running.client.get("/api/load", params={"bins": 600}).json()
    assert load["points"][-1]["total_blocks"] == 1500
    assert load["steps"] > 0
    engine.step_until(lambda: running.client.get("/api/state").json()["engines"][0]["unfinished"] == 0)
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["completions"] == 5)
    state = running.client.get("/api/state").json()
    assert state["engines"][0]["connected"]
    assert state["engines"][0]["tables_sent"] >= 5
    assert state["engines"][0]["snapshot"]["queue"] == state["engines"][0]["snapshot"]["running_requests"] == []


@pytest.mark.slow
def test_metrics_count_what_happened(start_controller: Start) -> None:
    """The Prometheus page has the promised names, and its counters the right values."""
    running = start_controller()
    engine = running.connect()
    engine.submit("only", output_tokens=7)
    engine.step_until(lambda: 'finished_requests_total{engine_id="driven"' in running.client.get("/metrics").text)
    page = running.client.get("/metrics").text
    assert 'sagesched_finished_requests_total{engine_id="driven",reason="stop"} 1.0' in page
    assert 'sagesched_generated_tokens_total{engine_id="driven"} 7.0' in page
    assert 'sagesched_ttlt_seconds_count{engine_id="driven"} 1.0' in page
    engine.step_until(lambda: "sagesched_predictions_total 1.0" in running.client.get("/metrics").text)
    assert all(f"sagesched_{name}_total" in page for name in Counts.__slots__)
    names = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}
    assert all(name.startswith("sagesched_") for name in names)


@pytest.mark.slow
def test_calibration_and_drift_are_shown_live(start_controller: Start) -> None:
    """By model in the state and in the metrics, and a drift with what changed, in the history too."""
    running = start_controller()
    engine = running.connect()
    for number in range(3):
        engine.submit(f"r{number}", output_tokens=5)
    engine.step_until(lambda: len(running.client.get("/api/state").json()["learner"]["models"]) == 1)
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["completions"] == 3)
    (shown,) = running.client.get("/api/state").json()["learner"]["models"]
    model = running.client.get("/api/state").json()["engines"][0]["model"]
    assert (shown["model"], shown["scope"], shown["trusted"], shown["reason"]) == (model, "model", True, "due")
    assert len(shown["pit_histogram"]) == 10
    assert {"coverage_50", "coverage_90", "crps_tokens", "log_score", "pinball_tokens", "kendall_tau"} <= set(shown)
    page = running.client.get("/metrics").text
    for name, _ in CALIBRATION_GAUGES:
        assert f'sagesched_calibration_{name}{{model="{model}"}}' in page
    assert f'sagesched_calibration_trusted{{model="{model}"}} 1.0' in page
    assert f'sagesched_calibration_pit_share{{model="{model}",tenth="9"}}' in page
    assert f'sagesched_calibration_distrusted_clusters{{model="{model}"}} 0.0' in page

    learner = running.service.loop._core._state.predictor._learner
    drift = Drift(model=model, cluster=4, before_mean_tokens=120.0, after_mean_tokens=360.0, forgotten=75.0)
    learner.learn_one = lambda *_: [drift]
    engine.submit("moved", output_tokens=5)
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["drifts"])
    (event,) = running.client.get("/api/state").json()["learner"]["drifts"]
    assert (event["before_mean_tokens"], event["after_mean_tokens"], event["forgotten"]) == (120.0, 360.0, 75.0)
    assert (event["model"], event["cluster"], event["renewed_requests"]) == (model, 4, 0)
    assert "sagesched_drift_events_total 1.0" in running.client.get("/metrics").text
    running.close()
    running.service.loop._history.close()
    with open_history(running.store) as history:
        assert history.sql("SELECT model, cluster, after_mean_tokens FROM drift_events").fetchall() == [
            (model, 4, 360.0)
        ]
        assert history.sql("SELECT DISTINCT model FROM calibration WHERE scope = 'model'").fetchall() == [(model,)]


@pytest.mark.slow
def test_a_mode_order_reaches_the_engine_and_the_history(start_controller: Start) -> None:
    """POST /api/mode changes the settings in force at the engine and is recorded with its reason."""
    running = start_controller()
    engine = running.connect()
    engine.submit("long", output_tokens=400)
    engine.step_until(lambda: engine.engine.agent.mode(engine.engine.now_s) == "on")
    answer = running.client.post("/api/mode", json={"mode": "shadow", "reason": "incident 42"})
    assert answer.status_code == 200
    assert answer.json()["settings"]["mode"] == "shadow"
    engine.step_until(lambda: engine.engine.agent.mode(engine.engine.now_s) == "shadow")
    engine.step_until(lambda: running.client.get("/api/state").json()["controller"]["mode"] == "shadow")


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/api/mode", {"json": {"mode": "fast"}}),
        ("POST", "/api/mode", {"json": {"mode": "on", "colour": "red"}}),
        ("POST", "/api/mode", {"content": b"{"}),
        ("GET", "/api/queue", {"params": {"limit": 0}}),
        ("GET", "/api/load", {"params": {"seconds": "x"}}),
        ("GET", "/api/latency", {"params": {"part": "colour:red"}}),
    ],
)
def test_bad_input_is_told_as_json_with_a_remedy(
    start_controller: Start, method: str, path: str, options: dict[str, Any]
) -> None:
    """No bad request ends in a stack trace or a bare number."""
    answer = start_controller().client.request(method, path, **options)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "remedy"}


def test_a_port_in_use_is_one_clear_error(start_controller: Start) -> None:
    """A second controller on the same port says what to do, before it touches the history."""
    first = start_controller()
    port = httpx.URL(str(first.client.base_url)).port
    with pytest.raises(Exception, match=f"http.port = {port}.*--port"):
        start_controller(http={"port": port})
