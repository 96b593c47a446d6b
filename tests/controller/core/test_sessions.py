"""What the controller remembers of an engine."""

from __future__ import annotations

import pytest

from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from online_learning.evaluation.global_learner import GlobalLearner
from store.records import Arrived, Facts, FirstToken, Hello, Snapshot

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=1000,
    block_size_tokens=16,
    max_num_seqs=64,
    token_budget=512,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)


def snapshot(time_s: float) -> Snapshot:
    """An engine that does nothing."""
    return Snapshot(
        time_s=time_s,
        waiting=2,
        running=0,
        kv_blocks_used=0,
        kv_blocks=1000,
        mode="on",
        steps=0,
        step_s=0.0,
        prefill_tokens=0,
        decode_tokens=0,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
    )


def test_the_queue_is_the_cost_of_what_waits_and_half_of_what_runs() -> None:
    """So long would the order of arrival keep the next one waiting; looked at once a second."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    controller.handle(b"x", HELLO, 0.0)
    [session] = controller.core.sessions
    arrivals = [
        Arrived(request_id=name, arrival_s=0.0, prompt_tokens=20, token_ids=b"", max_tokens=most, temperature=1.0)
        for name, most in (("short", 50), ("long", 2000))
    ]
    controller.handle(b"x", Facts(batch=1, facts=tuple(arrivals), oldest=1), 0.1)
    cost_s = {name: request.cost_s for name, request in session.requests.items()}
    assert 0.0 < cost_s["short"] < cost_s["long"]
    controller.handle(b"x", snapshot(10.0), 10.0)
    assert session.engine.queue_s == pytest.approx(cost_s["short"] + cost_s["long"])
    first = FirstToken(request_id="long", time_s=10.1, scheduled_s=10.0, cached_prompt_tokens=0)
    controller.handle(b"x", Facts(batch=2, facts=(first,), oldest=2), 10.1)
    controller.handle(b"x", snapshot(10.5), 10.5)
    assert session.engine.queue_s == pytest.approx(cost_s["short"] + cost_s["long"])
    controller.handle(b"x", snapshot(11.1), 11.1)
    assert session.engine.queue_s == pytest.approx(cost_s["short"] + cost_s["long"] / 2)
