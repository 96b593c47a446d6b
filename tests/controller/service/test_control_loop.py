from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from online_learning.survival.length_sketch import LengthSketch
from store.history.reader import open_history
from store.records import EngineMessage, Finished, Snapshot

pytestmark = pytest.mark.slow

Start = Callable[..., Any]


def test_facts_are_acknowledged_once_they_are_on_disk(start_controller: Start) -> None:
    """The engine lets go of its facts, and by then the history holds them."""
    running = start_controller()
    engine = running.connect()
    for number in range(3):
        engine.submit(f"r{number}", output_tokens=3)
    agent = engine.engine.agent
    engine.step_until(lambda: len(engine.lives) == 3)
    engine.step_until(lambda: not agent.unacknowledged)
    running.close()
    running.service.loop._history.close()
    with open_history(running.store) as history:
        rows = history.execute("SELECT request_id, output_tokens FROM requests ORDER BY ALL").fetchall()
        batches = history.execute("SELECT session_id, batch FROM sealed_batches").fetchall()
    assert rows == [("r0", 3), ("r1", 3), ("r2", 3)]
    assert batches == [("s1", agent._outbox.batch)]


def test_a_restarted_controller_remembers_batches_and_lengths(
    start_controller: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """After a restart nothing durable is asked for again, nothing is stored twice, and the learner knows the past."""
    first = start_controller()
    engine = first.connect()
    for number in range(40):
        engine.submit(f"r{number}", output_tokens=4)
    engine.step_until(lambda: len(engine.lives) == 40)
    engine.step_until(lambda: not engine.engine.agent.unacknowledged)
    engine.submit("late", output_tokens=150)
    engine.step_until(lambda: engine.engine.agent._outbox.batch > 0 and not engine.engine.agent.unacknowledged)
    first.service.loop.stop()
    first.thread.join(10.0)
    first.service.loop._hub.close()
    first.service.loop._history.close()
    engine.step_until(lambda: engine.engine.agent.fallback(engine.engine.now_s) is not None)
    assert engine.engine.agent.fallback(engine.engine.now_s).startswith(("controller silent", "controller late"))

    caplog.set_level("INFO")
    second = start_controller()
    assert "learned from 40 recorded answers" in caplog.text
    engine.step_until(lambda: engine.engine.agent.mode(engine.engine.now_s) == "on")
    engine.step_until(lambda: [row["request_id"] for row in second.client.get("/api/queue").json()["rows"]] == ["late"])
    assert second.client.get("/api/state").json()["store"]["duplicates"] == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_was_learned_is_kept_beside_the_history_until_the_learner_fails(
    start_controller: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A controller that was killed is followed by one that knows what the file holds; a broken learner writes none."""
    monkeypatch.setattr("controller.service.memory.KEEP_SOON_S", 0.0)
    monkeypatch.setattr("controller.service.memory.MANY_ANSWERS", 1)
    first = start_controller()
    engine, file = first.connect(), first.store / "learner.state"
    for number in range(20):
        engine.submit(f"r{number}", output_tokens=4)
    engine.step_until(lambda: first.service.loop._memory._kept_answers == 20)
    first.service.loop.stop()
    first.thread.join(10.0)
    first.service.loop._hub.close()
    first.service.loop._history.close()

    caplog.set_level("INFO")
    second = start_controller()
    assert "the learner knows the first 20 answers" in caplog.text
    assert second.service.loop._core.past.next_answer == 20
    before = file.stat().st_mtime_ns
    with monkeypatch.context() as broken:
        broken.setattr(LengthSketch, "learn_one", lambda *_: 1 / 0)
        engine.submit("fails", output_tokens=4)
        engine.step_until(lambda: not second.service.loop._memory._is_sound)
    for number in range(20):
        engine.submit(f"more {number}", output_tokens=4)
    engine.step_until(lambda: len(engine.lives) == 41)
    engine.step_until(lambda: not engine.engine.agent.unacknowledged)
    assert file.stat().st_mtime_ns == before


def test_a_failing_core_falls_back_and_heals(start_controller: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the core raises: counted, logged once, engines serve FCFS, and order again after a while."""
    running = start_controller()
    loop = running.service.loop
    engine = running.connect()
    engine.submit("long", output_tokens=450)
    agent = engine.engine.agent
    engine.step_until(lambda: agent.mode(engine.engine.now_s) == "on")
    handle, failures = loop._core.handle, 2

    def fail_on_snapshots(connection: bytes, message: EngineMessage, now_s: float, **more: bool) -> None:
        nonlocal failures
        if failures and isinstance(message, Snapshot):
            failures -= 1
            raise ZeroDivisionError("by design")
        handle(connection, message, now_s)

    loop._limits = type(loop._limits)(error_pause_s=0.4)
    loop._core.handle = fail_on_snapshots
    engine.step_until(lambda: agent.mode(engine.engine.now_s) == "off")
    assert running.client.get("/healthz").status_code == 200
    engine.step_until(lambda: agent.mode(engine.engine.now_s) == "on")
    assert "sagesched_tick_errors_total 2.0" in running.client.get("/metrics").text
    assert sum("control loop failed" in record.message for record in caplog.records) == 1


def test_a_loop_that_is_stuck_is_neither_alive_nor_ready(start_controller: Start) -> None:
    """Both probes say so with what to do, and are well again when it goes on."""
    running = start_controller()
    goes_on = threading.Event()
    tick = running.service.loop._core.tick

    def hang(now_s: float) -> None:
        goes_on.wait(60.0)
        tick(now_s)

    def both_answer(code: int) -> None:
        until_s = time.monotonic() + 30.0
        while {running.client.get(probe).status_code for probe in ("/healthz", "/readyz")} != {code}:
            assert time.monotonic() < until_s, f"not {code} after 30 s"
            time.sleep(0.1)

    both_answer(200)
    running.service.loop._core.tick = hang
    both_answer(503)
    refused = running.client.get("/readyz").json()
    assert "the control loop has published nothing for" in refused["error"]
    assert "restart the controller" in refused["remedy"]
    goes_on.set()
    both_answer(200)


def test_what_fails_on_the_messages_of_one_engine_costs_that_engine_alone(
    start_controller: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves first come, first served, is named, and takes orders again by itself; the other one never stops to."""
    running = start_controller()
    loop = running.service.loop
    loop._limits = type(loop._limits)(error_pause_s=0.5)
    bad, good = running.connect("bad", "bad"), running.connect("good", "good")
    modes, predict = set(), loop._core._state.predictor.predict

    def both(condition: Callable[[], bool]) -> None:
        def stepped() -> bool:
            good.step()
            modes.add(good.engine.agent.mode(good.engine.now_s))
            return condition()

        bad.step_until(stepped)

    for engine in (bad, good):
        engine.submit("long", output_tokens=450)
    both(lambda: {engine.engine.agent.mode(engine.engine.now_s) for engine in (bad, good)} == {"on"})
    modes.clear()

    def choke(arrivals: Any, *args: Any, **more: Any) -> Any:
        if any(session.hello.session_id == "bad" and arrived.request_id == "poison" for session, arrived in arrivals):
            raise ZeroDivisionError("by design")
        return predict(arrivals, *args, **more)

    loop._core._state.predictor.predict = choke
    for name in ("poison", "next"):
        bad.submit(name, output_tokens=300)
    both(lambda: bad.engine.agent.mode(bad.engine.now_s) == "off")
    both(lambda: running.client.get("/readyz").json()["degraded"] == ["engine_failing"])
    (state,) = running.client.get("/api/state").json()["degraded"]
    assert "Engine bad serves first come, first served" in state["text"]
    assert "ZeroDivisionError: by design" in state["text"]
    assert 'sagesched_degraded{state="engine_failing"} 1.0' in running.client.get("/metrics").text
    both(lambda: bad.engine.agent.mode(bad.engine.now_s) == "on")
    both(lambda: running.client.get("/readyz").json()["degraded"] == [])
    assert modes == {"on"}
    assert bad.engine.agent._ordering.tables_held == 2, "the facts behind it were handled"
    assert "sagesched_engine_errors_total 1.0" in running.client.get("/metrics").text
    assert sum("control loop failed" in record.message for record in caplog.records) == 1


def test_a_fact_that_cannot_be_read_costs_itself_and_nothing_else(
    start_controller: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Its batch is acknowledged, all else in it is recorded, a count out of range as the nearest possible; and it is said."""
    running = start_controller()
    engine = running.connect()
    agent = engine.engine.agent
    engine.step_until(lambda: agent.mode(engine.engine.now_s) == "on")
    finished = agent.finished

    def spoil(fact: Finished) -> None:
        spoilt = {"negative": {"cached_prompt_tokens": -3}, "timeless": {"time_s": math.nan}}
        finished(structs.replace(fact, **spoilt.get(fact.request_id, {})))

    agent.finished = spoil
    for name in ("before", "negative", "timeless", "after"):
        engine.submit(name, output_tokens=3)
    engine.step_until(lambda: len(engine.lives) == 4 and not agent.unacknowledged)
    engine.step_until(lambda: running.client.get("/readyz").json()["degraded"] == ["facts_damaged"])
    assert agent.mode(engine.engine.now_s) == "on"
    (state,) = running.client.get("/api/state").json()["degraded"]
    assert state["text"].startswith("2 facts of engine driven could not be read")
    metrics = running.client.get("/metrics").text
    assert "sagesched_damaged_facts_total 2.0" in metrics
    assert "sagesched_bad_frames_total 0.0" in metrics
    assert any("leaving out or mending facts" in record.message for record in caplog.records)
    running.close()
    running.service.loop._history.close()
    with open_history(running.store) as history:
        rows = history.execute("SELECT request_id, cached_prompt_tokens FROM completions ORDER BY ALL").fetchall()
    assert rows == [("after", 0), ("before", 0), ("negative", 0)]


def test_while_the_disk_is_far_behind_decisions_go_on_and_facts_stay_with_the_engines(start_controller: Start) -> None:
    """Beyond the bound on unwritten entries no fact is recorded or acknowledged; afterwards each is, once."""
    running = start_controller()
    loop = running.service.loop
    loop._limits = type(loop._limits)(unwritten_entries=-1)
    time.sleep(5 * loop._limits.wait_s)
    engine = running.connect()
    agent = engine.engine.agent
    for number in range(6):
        engine.submit(f"r{number}", output_tokens=3 if number else 400)
    engine.step_until(lambda: len(engine.lives) == 5 and agent._ordering.tables_held == 1)
    assert agent.mode(engine.engine.now_s) == "on"
    # The picture is a quarter of a second old at most, and so it is waited for.
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["predictions"] == 6)
    state = running.client.get("/api/state").json()
    assert (state["store"]["rows"].get("arrivals", 0), len(agent._outbox)) == (0, 6 + 5 + 6)
    loop._limits = type(loop._limits)()
    engine.step_until(lambda: len(agent._outbox) == 0)
    engine.step_until(lambda: len(engine.lives) == 6)
    engine.step_until(lambda: len(agent._outbox) == 0)
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["completions"] == 6)
    state = running.client.get("/api/state").json()
    assert (state["store"]["duplicates"], state["learner"]["completions"]) == (0, 6)
    assert "sagesched_unrecorded_batches_total 0.0" not in running.client.get("/metrics").text
    running.close()
    loop._history.close()
    with open_history(running.store) as history:
        for table, facts in (("arrivals", 6), ("first_tokens", 6), ("completions", 6)):
            rows = history.sql(f"SELECT count(*), count(DISTINCT request_id) FROM {table}").fetchall()
            assert rows == [(facts, facts)], table


def test_a_loop_that_cannot_learn_from_every_answer_says_so_once(
    start_controller: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Every request has its table and its end in the history; what was left out is in log, metrics and state."""
    running = start_controller()
    core = running.service.loop._core
    core._state.deferred.capacity = 1
    core.work = lambda _now_s: []
    engine = running.connect()
    for number in range(6):
        engine.submit(f"r{number}", output_tokens=3)
    engine.step_until(lambda: not engine.engine.agent.unacknowledged and len(engine.lives) == 6)
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["not_learnt"] == 5)
    learner = running.client.get("/api/state").json()["learner"]
    assert (learner["predictions"], learner["completions"], learner["backlog"]) == (6, 0, 1)
    metrics = running.client.get("/metrics").text
    assert "sagesched_not_learnt_total 5.0" in metrics
    assert "sagesched_backlog 1.0" in metrics
    assert sum("5 answers were not learned from, and 0 requests" in record.message for record in caplog.records) == 1
    del core.work
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["completions"] == 1)


def test_an_overloaded_loop_defers_arrivals_and_predicts_them_when_there_is_time(start_controller: Start) -> None:
    """The engine stays on and serves; every request that is still there has its table in the end."""
    running = start_controller()
    loop = running.service.loop
    loop._limits = type(loop._limits)(overload_s=-1.0)
    engine = running.connect()
    for number in range(6):
        engine.submit(f"r{number}", output_tokens=400)
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["predictions"] == 6)
    rows = {row["request_id"] for row in running.client.get("/api/queue").json()["rows"]}
    assert rows == {f"r{number}" for number in range(6)}
    assert engine.engine.agent.mode(engine.engine.now_s) == "on"
    metrics = running.client.get("/metrics").text
    assert "sagesched_deferred_total 6.0" in metrics
    assert "sagesched_not_predicted_total 0.0" in metrics
