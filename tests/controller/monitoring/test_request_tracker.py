from __future__ import annotations

from typing import Any

import pytest

from controller.monitoring import request_tracker
from controller.monitoring.request_tracker import RequestTracker
from store.entries import Entry, StoreRecord
from store.records import Arrived, Finished, Preempted


def entry(record: StoreRecord, session_id: str = "s") -> Entry:
    return Entry(engine_id="e", session_id=session_id, batch=1, record=record)


def arrived(name: str, **changes: Any) -> Entry:
    facts = {"arrival_s": 1.0, "prompt_tokens": 1, "token_ids": b"1234", "max_tokens": 9, "temperature": 1.0}
    return entry(Arrived(request_id=name, **facts | changes))


def finished(name: str) -> Finished:
    return Finished(
        request_id=name, time_s=2.0, reason="stop", arrival_s=1.0, prompt_tokens=1, output_tokens=1, max_tokens=9,
        cached_prompt_tokens=0, preemptions=0, recomputed_tokens=0, scheduled_s=None, first_token_s=None,
    )  # fmt: skip


def test_a_request_is_forgotten_with_its_end_and_keeps_what_came_first() -> None:
    """What is told again after a controller came back changes nothing; names are a session's own."""
    tracker = RequestTracker()
    tracker.observe(arrived("r", tenant="first"))
    tracker.observe(arrived("r", tenant="again", resent=True))
    tracker.observe(entry(Preempted(request_id="r", time_s=1.5, lost_tokens=1, attained_tokens=0, cause="memory")))
    assert tracker.observe(entry(finished("r"), "other session")) is None
    ended = tracker.observe(entry(finished("r")))
    assert ended is not None
    assert ended.arrived is not None
    assert (ended.arrived.tenant, ended.arrived.token_ids, ended.preempted_s) == ("first", b"", [1.5])
    assert tracker.observe(entry(finished("r"))) is None


def test_unfinished_requests_and_their_preemptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest are kept, the oldest go."""
    monkeypatch.setattr(request_tracker, "REQUESTS_KEPT", 20)
    tracker = RequestTracker()
    for number in range(50):
        tracker.observe(arrived(f"r{number}"))
    for time_s in range(100):
        lost = Preempted(request_id="r49", time_s=float(time_s), lost_tokens=1, attained_tokens=0, cause="memory")
        last = tracker.observe(entry(lost))
    assert last is not None
    assert len(last.preempted_s) == request_tracker.PREEMPTIONS_KEPT
    ends = [tracker.observe(entry(finished(f"r{number}"))) for number in range(50)]
    assert [end is not None for end in ends] == [False] * 30 + [True] * 20
