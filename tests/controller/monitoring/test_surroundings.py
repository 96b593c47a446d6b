from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from controller.monitoring import surroundings
from controller.monitoring.surroundings import open_files, open_files_limit, raise_open_files_limit, surrounding_states
from store.history.writer_stats import WriterStats


def kinds(**stats: Any) -> list[str]:
    return [state.kind for state in surrounding_states({}, WriterStats(**stats), [], 1_000.0)]


def test_all_is_well_says_nothing() -> None:
    """No state without a reason."""
    assert kinds() == []


def test_each_trouble_of_the_history_is_a_state() -> None:
    """Files that were replaced for ten minutes and while it cannot be written; a clock that is ahead as long as it is."""
    assert kinds(replaced_s=900.0) == ["history_replaced"]
    assert kinds(replaced_s=300.0) == []
    assert kinds(replaced_s=300.0, last_error="is being written by process 7") == ["history_replaced"]
    assert kinds(clock_ahead_s=3e6) == ["clock_ahead"]
    assert kinds(waiting_since_s=995.0) == ["history_behind"]
    assert kinds(waiting_since_s=997.0) == []
    assert kinds(refused=3) == ["history_behind"]
    assert kinds(waiting_since_s=995.0, last_error="No space left on device") == [], "another state says so"


def test_what_keeps_engines_from_connecting_is_a_state() -> None:
    """As the endpoint says it."""
    [state] = surrounding_states({"deaf_endpoint": "its socket was removed"}, WriterStats(), [], 0.0)
    assert (state.kind, state.text) == ("deaf_endpoint", "its socket was removed")


def test_open_files_near_their_limit_are_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """From four fifths on; `serve` raises the limit as far as the system lets it."""
    assert 0 < open_files() < open_files_limit()
    assert raise_open_files_limit() == open_files_limit()
    monkeypatch.setattr(surroundings, "open_files", lambda: 820)
    monkeypatch.setattr(surroundings, "open_files_limit", lambda: 1_024)
    [state] = surrounding_states({}, WriterStats(), [], 0.0)
    assert state.kind == "files_near_limit"
    assert "820 of 1024" in state.text


@pytest.mark.slow
def test_two_engines_of_one_name_are_said_and_both_served(
    start_controller: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """In /readyz, /api/state, the metric and the log, until one of them is gone; each has its own order meanwhile."""
    running = start_controller()
    first, second = running.connect("s1"), running.connect("s2")
    for number, engine in enumerate((first, second)):
        engine.submit(f"r{number}", output_tokens=300)

    def served() -> bool:
        second.step()
        modes = {engine.engine.agent.mode(engine.engine.now_s) for engine in (first, second)}
        return modes == {"on"} and "name_shared" in running.client.get("/readyz").json()["degraded"]

    first.step_until(served)
    [state] = running.client.get("/api/state").json()["degraded"]
    assert (state["kind"], "2 engines are connected as 'driven'" in state["text"]) == ("name_shared", True)
    assert 'sagesched_degraded{state="name_shared"} 1.0' in running.client.get("/metrics").text
    assert sum("2 engines are connected as" in record.message for record in caplog.records) == 1
    second.engine.agent.close(second.engine.now_s)
    first.step_until(lambda: running.client.get("/readyz").json()["degraded"] == [])
