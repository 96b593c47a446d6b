"""Which targets would have been met: read from a history, replayed, and held against what SQL says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from controller.cli.main import run as command_line
from controller.policy.policies import Schedule
from controller.replay.gain import estimate_gain
from controller.replay.read_history import Slice, read_runs
from controller.replay.recorded_run import RecordedRun, Replayable
from controller.replay.replay import ReplaySpec, run_replay
from controller.replay.replay_engine import RecordedMessages
from store.history.reader import open_history
from store.http_api import Gain
from store.records import Arrived, Facts, IndexTable, Targets
from store.service_levels import DEFAULT_TARGETS, NOT_CONFIGURED

CHAT = Targets(ttft_s=1.5, tpot_s=0.05, e2e_s=60.0)
"""The targets of the class in the history."""


def past(store: Path) -> RecordedRun:
    """The run of a history."""
    with open_history(store) as connection:
        (found,) = read_runs(connection, Slice())
    return found


def test_what_was_promised_is_read_with_the_run(promised: Any) -> None:
    """Class and targets of those in one, none of the others, for which the defaults can be put in force."""
    run = past(promised.store)
    for request in run.requests:
        expected = ("chat", CHAT) if request.priority == -1 else (None, None)
        assert (request.service_class, request.targets) == expected
    assumed = {request.request_id: request for request in run.with_default_targets().requests}
    for request in run.requests:
        level = assumed[request.request_id].level
        assert (level.service_class, level.targets) == (
            ("chat", CHAT) if request.priority == -1 else (NOT_CONFIGURED, DEFAULT_TARGETS)
        )


def test_recorded_and_reproduced_attainment_are_those_of_sql(promised: Any) -> None:
    """In shadow the replay of first come, first served is what happened, so that all three agree with the view."""
    query = """
        SELECT service_class, avg(met::INTEGER), avg(ttft_met::INTEGER), avg(tpot_met::INTEGER), avg(e2e_met::INTEGER)
        FROM service_levels WHERE reason IN ('stop', 'length') GROUP BY ALL ORDER BY ALL
    """
    with open_history(promised.store) as connection:
        expected = connection.sql(query).fetchall()
        (run,) = read_runs(connection, Slice())
    replay = run_replay(ReplaySpec(policies=("fcfs",), schedule=Schedule(), slo=True), [run])
    for served in (replay.recorded, replay.reproduced, replay.policies["fcfs"]):
        found = replay.service(served)
        assert sorted(found.classes) == ["chat", NOT_CONFIGURED]
        for name, met, *of_targets in expected:
            figures = found.classes[name]
            assert figures.goodput == pytest.approx(met)
            reached = [figures.attainment.get(target) for target in ("ttft", "tpot", "e2e")]
            assert reached == [None if share is None else pytest.approx(share) for share in of_targets]
    assert 0.0 < replay.service(replay.recorded).goodput < 1.0
    assert replay.assumed == sum(request.priority != -1 for request in run.requests if request.counted)
    assert any(f"{replay.assumed} of the requests had no class" in note for note in replay.notes)


def test_targets_are_told_to_those_policies_alone_that_keep_them(
    promised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours; without ``slo`` only what was recorded. What reproduces the record sends its own tables."""
    told: dict[str, set[Targets | None]] = {}
    trace = Replayable.trace

    def watched(self: Replayable, *, targets: bool) -> Any:
        requests = list(trace(self, targets=targets))
        told.setdefault(replaying[0], set()).update(request.targets for request in requests)
        return requests

    monkeypatch.setattr(Replayable, "trace", watched)
    run = replace(past(promised.store), messages=())
    for slo, expected in ((True, {CHAT, DEFAULT_TARGETS}), (False, {CHAT, None})):
        for policy in ("priority", "sage"):
            replaying = [policy]
            told.clear()
            run_replay(ReplaySpec(policies=(policy,), schedule=Schedule(), slo=slo), [run])
            assert told[policy] == (expected if policy == "sage" else expected | {None})


def test_recorded_tables_are_sent_with_the_targets_that_they_had(promised: Any) -> None:
    """As live: with the quantiles of the length that an end-to-end target needs, and none where nothing was promised."""
    run = past(promised.store)
    chat = next(request for request in run.requests if request.priority == -1)
    other = next(request for request in run.requests if request.priority != -1)
    link = RecordedMessages(Replayable.of(run)).link(lambda: 1.7e9)
    tables = {}
    for number, request in enumerate((chat, other), 1):
        arrived = Arrived(
            request_id=request.request_id,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            token_ids=b"",
            max_tokens=request.max_tokens,
            temperature=1.0,
        )
        link.send(Facts(batch=number, oldest=number, facts=(arrived,)))
        for message in link.receive():
            if isinstance(message, IndexTable) and message.request_id == request.request_id:
                tables[request.request_id] = message
    found = tables[chat.request_id]
    assert found.targets == CHAT
    assert len(found.early_tokens) == len(found.late_tokens) == len(found.attained_tokens)
    assert all(early <= late for early, late in zip(found.early_tokens, found.late_tokens, strict=True))
    assert tables[other.request_id].targets is None


def test_the_command_says_which_targets_would_have_been_met(
    promised: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under first come, first served, by priority and under ours, on the terminal, in the JSON and on the page."""
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    assert command_line(["replay", "--store", str(promised.store), "--slo", "--quiet", *files]) == 0
    said = capsys.readouterr().out
    assert "Targets met" in said
    service = json.loads((tmp_path / "r.json").read_text())["service"]
    assert list(service["policies"]) == ["fcfs", "priority", "sage"]
    chat = {name: figures["classes"]["chat"]["goodput"] for name, figures in service["policies"].items()}
    assert chat["priority"] > chat["fcfs"] + 0.2
    assert (tmp_path / "r.html").read_text().count("<table>") == 3


def gain(run: RecordedRun) -> Gain:
    """The comparison of the running controller."""
    found = estimate_gain(run, Schedule().policy())
    assert found is not None
    return found


def test_the_gain_has_the_same_numbers(promised: Any) -> None:
    """All requests, then each class: measured, and replayed in three orders."""
    run = past(promised.store)
    replay = run_replay(ReplaySpec(policies=("fcfs", "priority"), schedule=Schedule()), [run])
    found = gain(run)
    by_class = {one.service_class: one for one in found.service}
    assert list(by_class) == [None, NOT_CONFIGURED, "chat"]
    assert found.assumed_targets == replay.assumed
    for order, served in (
        ("actual", replay.recorded),
        ("fcfs", replay.policies["fcfs"]),
        ("priority", replay.policies["priority"]),
    ):
        figures = replay.service(served)
        assert getattr(by_class[None], order).goodput == pytest.approx(figures.goodput)
        assert getattr(by_class["chat"], order).e2e == pytest.approx(figures.classes["chat"].attainment["e2e"])
        assert getattr(by_class["chat"], order).goodput == pytest.approx(figures.classes["chat"].goodput)
    assert by_class[NOT_CONFIGURED].actual.e2e is None
    one_class = replace(run, requests=tuple(replace(request, priority=0) for request in run.requests))
    assert all(one.priority == one.fcfs for one in gain(one_class).service)
