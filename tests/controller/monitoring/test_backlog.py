"""The backlog of an engine: about the time in which what is there is served, nought when nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.core.in_process import InProcessController
from controller.monitoring.backlog import backlog_s
from controller.monitoring.live_state import EngineView, Live
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import Step, TraceRequest, serve
from engine_adapter.virtual_time.profiles import profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.evaluation.global_learner import GlobalLearner
from store.history.writer import WriterStats

REQUESTS = 400


def batch() -> list[TraceRequest]:
    """Requests that are there at once, of very different lengths."""
    generator = np.random.default_rng(3)
    return [
        TraceRequest(
            request_id=f"r{number}",
            arrival_s=0.0,
            token_ids=tuple(range(600 * number, 600 * number + int(generator.integers(50, 600)))),
            max_tokens=2_000,
            true_output_tokens=int(min(2_000, 1 + generator.lognormal(5.0, 0.8))),
        )
        for number in range(2 * REQUESTS)
    ]


def test_the_backlog_of_a_full_engine_is_about_the_time_that_it_still_needs() -> None:
    """For the first half of it, once lengths and step times are learnt; at the end it is nought."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    engine = SimulatedEngine(
        profile_named("h800-qwen3-32b-24k"), link=controller.link(lambda: engine.now_s), engine_id="e"
    )
    live = Live()
    seen: list[tuple[float, float | None]] = []

    def view() -> EngineView:
        live.publish(controller.core, store=WriterStats(), loop={}, now_s=engine.now_s)
        assert live.live_snapshot is not None
        (only,) = live.live_snapshot.engines
        return only

    def look(step: Step) -> None:
        if not seen or step.start_s > seen[-1][0] + 2.0:
            seen.append((step.start_s, backlog_s(view())))

    requests = batch()
    serve(engine, [replace(one, request_id=f"former-{one.request_id}") for one in requests[REQUESTS:]])
    start_s = engine.now_s
    serve(engine, [replace(one, arrival_s=start_s) for one in requests[:REQUESTS]], on_step=look)
    end_s = engine.now_s
    early = [(time_s, found_s) for time_s, found_s in seen if 1.0 < time_s - start_s < 0.5 * (end_s - start_s)]
    assert len(early) > 10
    for time_s, found_s in early:
        assert found_s is not None
        assert 0.7 < found_s / (end_s - time_s) < 1.2
    assert backlog_s(view()) == 0.0


def test_requests_beyond_the_bound_count_as_those_that_are_shown() -> None:
    """A live snapshot names some of them and knows how many there are."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    engine = SimulatedEngine(profile_named("h800-qwen3-32b-24k"), link=controller.link(lambda: engine.now_s))
    for request in batch()[:20]:
        engine.submit(request)
    for _ in range(20):
        engine.step()
    live = Live()
    live.publish(controller.core, store=WriterStats(), loop={}, now_s=engine.now_s)
    assert live.live_snapshot is not None
    (view,) = live.live_snapshot.engines
    assert view.unfinished == 20
    assert backlog_s(replace(view, unfinished=60)) == pytest.approx(3.0 * (backlog_s(view) or 0.0))


def test_where_requests_are_not_followed_there_is_no_figure() -> None:
    """In mode ``off`` the controller hears of none: a nought would have an autoscaler take the engine away."""
    controller = InProcessController(GlobalLearner(), policy_named("fcfs"))
    engine = SimulatedEngine(profile_named("h800-qwen3-32b-24k"), link=controller.link(lambda: engine.now_s))
    for request in batch()[:20]:
        engine.submit(request)
    for _ in range(20):
        engine.step()
    live = Live()
    live.publish(controller.core, store=WriterStats(), loop={}, now_s=engine.now_s)
    assert live.live_snapshot is not None
    (view,) = live.live_snapshot.engines
    assert view.snapshot is not None
    assert view.snapshot.running > 0
    assert backlog_s(view) is None
