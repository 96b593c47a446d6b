from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.core.in_process import InProcessController
from controller.monitoring.live_state import EngineView, Live, LiveSnapshot, RequestView
from controller.monitoring.present.queue_rows import queue_rows
from controller.policy.policies import policy_named
from controller.policy.policy import EngineFacts
from online_learning.distribution import LengthDistribution
from online_learning.evaluation.global_learner import GlobalLearner
from store.history.writer import WriterStats
from store.records import (
    Arrived,
    EngineRules,
    Facts,
    Finished,
    Goodbye,
    Hello,
    IndexTable,
    RunningRequest,
    Settings,
    Snapshot,
)

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="0",
    kv_blocks=100,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=2048,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)
PREDICTED = LengthDistribution(np.array([10, 100]), np.array([0.5, 0.5]))


def _view(request_id: str, *, index_s: float = 1.0, priority: int = 0, attained_tokens: int = 0) -> RequestView:
    arrived = Arrived(
        request_id=request_id,
        arrival_s=5.0,
        prompt_tokens=8,
        token_ids=b"",
        max_tokens=100,
        temperature=1.0,
        priority=priority,
    )
    table = IndexTable(request_id=request_id, attained_tokens=(0, 10), index_s=(index_s, 9.0), growth_tokens=(1.0, 1.0))
    return RequestView(arrived=arrived, predicted=PREDICTED, table=table, cluster=3, attained_tokens=attained_tokens)


def test_an_engine_that_was_lost_is_shown_as_lost_until_it_comes_back_or_an_hour_is_over() -> None:
    """Also when the core has forgotten it, which it does after a minute; one that left in order is forgotten with that."""
    core = InProcessController(GlobalLearner(), policy_named("sage")).core
    live = Live()

    def shown(now_s: float) -> list[tuple[str, bool, str | None]]:
        core.tick(now_s)
        live.publish(core, store=WriterStats(), loop={}, now_s=now_s)
        assert live.live_snapshot is not None
        return sorted((view.hello.engine_id, view.connected, view.gone) for view in live.live_snapshot.engines)

    for name in ("a", "b"):
        core.handle(name.encode(), structs.replace(HELLO, engine_id=name, session_id=name), 0.0)
    assert shown(1.0) == [("a", True, None), ("b", True, None)]
    core.lost(b"a", 2.0)
    core.handle(b"b", Goodbye(time_s=2.0), 2.0)
    assert shown(3.0) == [("a", False, "lost"), ("b", False, "left")]
    core.handle(b"d", structs.replace(HELLO, engine_id="b", session_id="d"), 3.0)
    assert shown(4.0) == [("a", False, "lost"), ("b", True, None)], "b is back, and what it was before is not shown"
    core.handle(b"d", Goodbye(time_s=5.0), 5.0)
    assert shown(120.0) == [("a", False, "lost")]
    assert shown(3500.0) == [("a", False, "lost")]
    core.handle(b"c", structs.replace(HELLO, engine_id="a", session_id="c"), 3500.0)
    assert shown(3501.0) == [("a", True, None)]
    core.lost(b"c", 3502.0)
    assert shown(3503.0) == shown(3600.0) == [("a", False, "lost")]
    assert shown(7200.0) == []


def test_requests_of_a_snapshot_stay_when_they_end_and_are_shown_as_they_are_when_they_are_read() -> None:
    """The loop copies none of them; who reads them sees what has become known of them since."""
    core = InProcessController(GlobalLearner(), policy_named("sage")).core
    live = Live()
    core.handle(b"e", HELLO, 0.0)
    arrivals = tuple(structs.replace(_view(name).arrived, arrival_s=0.0) for name in "abc")
    core.handle(b"e", Facts(batch=1, facts=arrivals, oldest=1), 1.0)
    live.publish(core, store=WriterStats(), loop={}, now_s=1.0)
    assert live.live_snapshot is not None
    [engine] = live.live_snapshot.engines
    assert [view.attained_tokens for view in engine.requests] == [0, 0, 0]
    [session] = core.sessions
    core.handle(b"e", Facts(batch=2, facts=(_finished("b"),), oldest=1), 2.0)
    session.requests["c"].attained_tokens = 7
    assert set(session.requests) == {"a", "c"}
    assert len(engine.requests) == 3
    assert [view.arrived.request_id for view in engine.requests] == ["a", "b", "c"]
    assert engine.requests[-1].attained_tokens == 7
    assert [view.arrived.request_id for view in engine.requests[1:]] == ["b", "c"]
    with pytest.raises(IndexError):
        engine.requests[3]


def _finished(request_id: str) -> Finished:
    return Finished(
        request_id=request_id,
        time_s=1.5,
        reason="stop",
        arrival_s=0.0,
        prompt_tokens=8,
        output_tokens=3,
        max_tokens=100,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
    )


def _live_snapshot(views: list[RequestView], *, running: list[str], queue: list[str]) -> LiveSnapshot:
    snapshot = Snapshot(
        time_s=9.0,
        waiting=len(queue),
        running=len(running),
        kv_blocks_used=0,
        kv_blocks=100,
        mode="on",
        steps=1,
        step_s=0.1,
        prefill_tokens=0,
        decode_tokens=0,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
        running_requests=tuple(RunningRequest(name, 1, 1) for name in running),
        queue=tuple(queue),
    )
    engine = EngineView(
        hello=HELLO,
        connected=True,
        last_seen_s=9.0,
        unfinished=len(views),
        tables_sent=0,
        clock_s=10.0,
        snapshot=snapshot,
        detailed=snapshot,
        requests=tuple(views),
        engine=EngineFacts(kv_tokens=1_600, block_size_tokens=16, max_num_seqs=8, base_s=0.02, prefill_token_s=1e-4),
    )
    settings = Settings(revision=1, mode="on", lease_s=1.0, rules=EngineRules())
    return LiveSnapshot(
        time_s=10.0,
        settings=settings,
        policy="sage",
        counts={},
        quality=None,
        clusters=0,
        calibration=(),
        drifts=(),
        engines=(engine,),
        store=WriterStats(),
        loop={},
    )


@given(
    queue=st.permutations([f"q{n}" for n in range(5)]),
    running=st.sets(st.sampled_from(["r0", "r1", "r2"])),
    limit=st.integers(1, 12),
)
def test_the_queue_shows_what_the_engine_reported_then_what_it_did_not(
    queue: list[str], running: set[str], limit: int
) -> None:
    """Waiting requests come in the engine's own order, those it did not name after them, running ones last.

    A long queue leaves the running ones half of the rows.
    """
    unnamed = [_view("late", index_s=2.0), _view("early", index_s=1.0), _view("urgent", index_s=5.0, priority=-1)]
    views = [*unnamed, *(_view(f"q{n}") for n in range(5)), *(_view(name) for name in sorted(running))]
    live_snapshot = _live_snapshot(views, running=sorted(running), queue=queue)
    rows = queue_rows(live_snapshot, engine_id="e", limit=limit)
    waiting = [*queue, "urgent", "early", "late"][: limit - min(len(running), limit // 2)]
    served = sorted(running)[: limit - len(waiting)]
    assert [row.request_id for row in rows] == waiting + served
    assert [row.position for row in rows] == list(range(len(rows)))
    assert [row.state for row in rows] == ["waiting"] * len(waiting) + ["running"] * len(served)
    assert len(rows) == min(limit, 8 + len(running))
    assert queue_rows(live_snapshot, engine_id="another", limit=limit) == ()


def test_a_row_follows_the_attained_tokens() -> None:
    """Index and expected remainder are those at the attained tokens, not those at arrival."""
    live_snapshot = _live_snapshot([_view("r", attained_tokens=20)], running=["r"], queue=[])
    row = queue_rows(live_snapshot, engine_id=None, limit=1)[0]
    assert row.index_s == 9.0
    assert row.expected_remaining_tokens == pytest.approx(80.0)
    assert (row.p50_tokens, row.p90_tokens, row.age_s, row.cluster) == (10, 100, 5.0, 3)
