"""The views of service levels against `store.service_levels`, and cases by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from store.entries import Promised
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.reading.request_timeline import read_timeline
from store.records import Arrived, Finished, Targets
from store.service_levels import DEFAULT_TARGETS, NOT_CONFIGURED, Cause, Course, course_of, judge, level_of

CHOICES = (None, 0.5, 1.0, 2.0)
TPOTS = (None, 0.05, 0.1)


def some_request(number: int, chance: random.Random) -> tuple[Finished, Promised | None]:
    """Times in halves and quarters, so that many lie on the very edge of a target."""
    queued, prefill = chance.randrange(9) / 4, chance.randrange(9) / 4
    first_s = None if chance.random() < 0.15 else 100.0 + queued + prefill
    tokens = 0 if first_s is None else chance.choice((1, 2, 21))
    end_s = (first_s or 100.0 + queued) + (tokens > 1) * chance.randrange(1, 9) / 2
    finished = Finished(
        request_id=f"r{number}",
        time_s=end_s,
        reason=chance.choice(("stop", "length", "abort", "error")),
        arrival_s=100.0,
        prompt_tokens=7,
        output_tokens=tokens,
        max_tokens=50,
        cached_prompt_tokens=2,
        preemptions=chance.choice((0, 0, 1)),
        recomputed_tokens=0,
        scheduled_s=None if chance.random() < 0.1 else 100.0 + queued,
        first_token_s=first_s,
        itl_max_s=None if chance.random() < 0.3 or tokens < 2 else chance.randrange(5) / 4,
        shed="it could not meet its target" if chance.random() < 0.05 else None,
    )
    if chance.random() < 0.2:
        return finished, None
    targets = Targets(ttft_s=chance.choice(CHOICES), tpot_s=chance.choice(TPOTS), e2e_s=chance.choice(CHOICES))
    named = chance.choice((None, "chat"))
    return finished, Promised(
        request_id=finished.request_id,
        time_s=100.0,
        service_class=named,
        targets=None if targets == Targets() else targets,
        objective=0.9 if named else None,
    )


def test_the_view_judges_as_the_code_does(tmp_path: Path, make: Any) -> None:
    """Two thousand requests with every combination of targets, ends and gaps in what is known."""
    chance = random.Random(5)
    requests = [some_request(number, chance) for number in range(2000)]
    with HistoryWriter(tmp_path) as writer:
        writer.append([make.entry(record) for pair in requests for record in pair if record is not None])
    expected = {}
    for finished, promised in requests:
        level = level_of(promised)
        judged = judge(course_of(finished), level.targets)
        expected[finished.request_id] = (
            level.service_class, level.objective, judged.ttft, judged.tpot, judged.e2e, judged.met, judged.cause,
        )  # fmt: skip
    with open_history(tmp_path) as history:
        found = history.sql(
            "SELECT request_id, service_class, objective, ttft_met, tpot_met, e2e_met, met, missed_because FROM service_levels"
        ).fetchall()
    assert {name: tuple(rest) for name, *rest in found} == expected
    causes = {judged[-1] for judged in expected.values()}
    assert causes == {None, "queued", "prefill", "paced", "preempted", "too_long", "shed", "failed"}


@pytest.mark.parametrize(
    ("changes", "targets", "cause"),
    [
        ({"scheduled_s": 1.9, "first_token_s": 2.1}, DEFAULT_TARGETS, "queued"),
        ({"scheduled_s": 0.1, "first_token_s": 2.2}, DEFAULT_TARGETS, "prefill"),
        ({"finished_s": 2.0, "output_tokens": 11, "itl_max_s": 0.2}, DEFAULT_TARGETS, "paced"),
        ({"finished_s": 2.0, "output_tokens": 11, "itl_max_s": 0.9, "preemptions": 1}, DEFAULT_TARGETS, "preempted"),
        ({"finished_s": 4.0}, Targets(e2e_s=3.0), "too_long"),
        ({"finished_s": 4.0, "scheduled_s": 1.0, "first_token_s": 1.1}, Targets(e2e_s=3.0), "queued"),
        ({"reason": "error"}, DEFAULT_TARGETS, "failed"),
        ({"reason": "abort", "first_token_s": None, "shed": "too late"}, DEFAULT_TARGETS, "shed"),
        ({"reason": "abort", "first_token_s": None, "finished_s": 9.0}, DEFAULT_TARGETS, None),
        ({}, DEFAULT_TARGETS, None),
    ],
)
def test_the_cause_is_what_made_the_difference(changes: dict[str, Any], targets: Targets, cause: Cause | None) -> None:
    """One request a cause, and two that missed nothing."""
    usual = {"scheduled_s": 0.1, "first_token_s": 0.5, "finished_s": 1.0, "reason": "stop", "output_tokens": 11}
    assert judge(Course(**{"arrival_s": 0.0} | usual | changes), targets).cause == cause


def test_tenants_and_sessions_are_summed(tmp_path: Path, make: Any) -> None:
    """Shares of the engine-seconds and of the weights; a session's requests, its completion and what was cached."""
    with HistoryWriter(tmp_path) as writer:
        for number, (tenant, weight, service_s) in enumerate((("a", 3.0, 4.0), ("a", 3.0, 2.0), ("b", 1.0, 2.0))):
            name, arrival_s = f"r{number}", 3600.0 + 10.0 * number
            arrived = Arrived(
                request_id=name, arrival_s=arrival_s, prompt_tokens=7, token_ids=b"", max_tokens=50, temperature=1.0,
                tenant=tenant, session=f"chat-{tenant}",
            )  # fmt: skip
            promised = Promised(
                request_id=name, time_s=arrival_s, service_class=None, targets=None, account=tenant, weight=weight
            )
            outcome = structs.replace(make.outcome(name, arrival_s + 5.0), service_s=service_s)
            ended = make.finished(name, arrival_s, arrival_s + 5.0)
            writer.append([make.entry(record) for record in (arrived, promised, ended, outcome)])
            resent = structs.replace(arrived, resent=True)
            writer.append([make.entry(record) for record in (resent, promised)])
    with open_history(tmp_path) as history:
        tenants = history.sql("SELECT tenant, hour_s, requests, service_s, share, fair_share FROM tenants ORDER BY 1")
        assert tenants.fetchall() == [("a", 3600.0, 2, 6.0, 0.75, 0.75), ("b", 3600.0, 1, 2.0, 0.25, 0.25)]
        sessions = history.sql(
            "SELECT session, tenant, requests, finished, completion_s, cached_share FROM sessions ORDER BY 1"
        )
        assert sessions.fetchall() == [("chat-a", "a", 2, 2, 15.0, 4 / 14), ("chat-b", "b", 1, 1, 5.0, 2 / 7)]
        timeline = read_timeline(history, "r2")
    assert timeline is not None
    assert (timeline.account, timeline.session, timeline.level.service_class) == ("b", "chat-b", NOT_CONFIGURED)
    assert timeline.judgement == judge(course_of(make.finished("r2", 3620.0, 3625.0)), DEFAULT_TARGETS)
