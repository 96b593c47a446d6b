"""The audit of ``make attack`` finds what it looks for: each kind of damage, done to the history or to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos.audit import Clocks, Findings, check_answers, check_ends, check_history, check_order
from chaos.book import Answer, Choice, Page
from chaos.clients import Line
from msgspec import structs

from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import Arrived, Finished

SENT_S = 1_000.0
WALL_S = 1_700_000_000.0
TOKENS = (17, 18, 19, 1)
STOCK = Answer(200, (Choice(TOKENS, "stop"),))
LINE = Line(
    tag="a1-0-0",
    page=Page({"stream": True}, "odd", answer=STOCK),
    outcome="answered",
    answer=STOCK,
    sent_s=SENT_S,
    first_s=SENT_S + 0.5,
    ended_s=SENT_S + 1.0,
)
ARRIVED = Arrived(
    request_id="cmpl-a1-0-0!odd-0-1234abcd",
    arrival_s=WALL_S,
    prompt_tokens=3,
    token_ids=bytes(12),
    max_tokens=9,
    temperature=1.0,
)
FINISHED = Finished(
    request_id=ARRIVED.request_id,
    time_s=WALL_S + 0.9,
    reason="stop",
    arrival_s=WALL_S,
    prompt_tokens=3,
    output_tokens=len(TOKENS),
    max_tokens=9,
    cached_prompt_tokens=0,
    preemptions=0,
    recomputed_tokens=0,
    scheduled_s=WALL_S + 0.1,
    first_token_s=WALL_S + 0.4,
)


class RecordedSite:
    """A history with these facts, as the audit reads it."""

    def __init__(self, folder: Path, facts: list[Arrived | Finished]) -> None:
        self.history = folder / "history"
        with HistoryWriter(self.history) as writer:
            writer.append(
                [
                    Entry(record=fact, engine_id="e", session_id="s", batch=number)
                    for number, fact in enumerate(facts, 1)
                ]
            )


def _audited(folder: Path, facts: list[Arrived | Finished], line: Line = LINE) -> dict[str, int]:
    """The kinds of violations that the audit finds."""
    site: Any = RecordedSite(folder, facts)
    findings = Findings(time.monotonic())
    check_answers([line], findings)
    check_history(site, [line], Clocks(WALL_S, SENT_S), findings)
    check_ends(site, [line], findings)
    assert findings.checks
    return dict(findings.kinds)


def test_a_sound_run_has_no_violation(tmp_path: Path) -> None:
    """The answer is stock's, and the history has it once with its times."""
    assert _audited(tmp_path, [ARRIVED, FINISHED]) == {}


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda _end: [ARRIVED], "every arrival has an end"),
        (lambda end: [ARRIVED, structs.replace(end, output_tokens=5)], "answered requests in SQL"),
        (lambda end: [ARRIVED, structs.replace(end, reason="abort")], "answered requests in SQL"),
        (lambda end: [ARRIVED, end, *_again(end)], "answered requests in SQL"),
        (lambda end: [ARRIVED, structs.replace(end, first_token_s=WALL_S - 3.0)], "times in order"),
        (lambda end: [ARRIVED, structs.replace(end, first_token_s=WALL_S + 0.85)], "TTFT within the client's"),
        (lambda end: [ARRIVED, structs.replace(end, time_s=WALL_S + 9.0)], "TTLT within the client's"),
        (lambda end: _moved(end, -600.0), "arrival when it was sent"),
    ],
)
def test_damage_to_the_history_is_found(
    tmp_path: Path, damage: Callable[[Finished], list[Arrived | Finished]], found: str
) -> None:
    """Missing, without an end, with wrong numbers, twice, or with times that its client did not see."""
    assert found in _audited(tmp_path, damage(FINISHED))


def test_a_request_that_is_missing_is_found(tmp_path: Path) -> None:
    """The client has its answer, the history nothing."""
    assert _audited(tmp_path, []) == {"answered requests in SQL": 1}


def _again(end: Finished) -> list[Arrived | Finished]:
    other = end.request_id.replace("1234abcd", "9876fedc")
    return [structs.replace(ARRIVED, request_id=other), structs.replace(end, request_id=other)]


def _moved(end: Finished, by_s: float) -> list[Arrived | Finished]:
    assert end.first_token_s is not None
    moved = structs.replace(end, arrival_s=end.arrival_s + by_s, time_s=end.time_s + by_s)
    return [
        structs.replace(ARRIVED, arrival_s=WALL_S + by_s),
        structs.replace(moved, scheduled_s=WALL_S + 0.1 + by_s, first_token_s=end.first_token_s + by_s),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500),
        Answer(200, (Choice((17, 18, 20, 1), "stop"),)),
        Answer(200, (Choice(TOKENS, "length"),)),
        Answer(200, (Choice(TOKENS[:-1], "stop"),)),
        Answer(200, ()),
    ],
)
def test_an_answer_that_is_not_stocks_is_found(tmp_path: Path, answer: Answer) -> None:
    """One token is enough."""
    line = Line(
        tag=LINE.tag,
        page=LINE.page,
        outcome="answered",
        answer=answer,
        sent_s=LINE.sent_s,
        first_s=LINE.first_s,
        ended_s=LINE.ended_s,
    )
    assert "as stock answers" in _audited(tmp_path, [ARRIVED, FINISHED], line)


def test_of_a_stream_that_was_left_the_part_that_was_read_is_compared(tmp_path: Path) -> None:
    """Its beginning is stock's beginning, or it is a violation."""
    for tokens, holds in (((17, 18), True), ((18, 17), False)):
        line = Line(
            tag=LINE.tag,
            page=LINE.page,
            outcome="left",
            answer=Answer(200, (Choice(tokens, ""),)),
            sent_s=LINE.sent_s,
            ended_s=LINE.ended_s,
        )
        findings = Findings(time.monotonic())
        check_answers([line], findings)
        assert (not findings.kinds) is holds


@pytest.mark.parametrize("overtaken", [False, True])
def test_first_come_first_served_is_no_order(tmp_path: Path, *, overtaken: bool) -> None:
    """Somebody must have started before one who had come earlier."""
    starts = [9.0, 8.0] if overtaken else [8.0, 9.0]
    site: Any = RecordedSite(tmp_path, [fact for number in (0, 1) for fact in _life(number, starts[number])])
    findings = Findings(time.monotonic())
    check_order(site, findings)
    assert (not findings.kinds) is overtaken


def _life(number: int, start_s: float) -> list[Arrived | Finished]:
    name, arrival_s = f"cmpl-a1-0-{number}!-0-1234abcd", WALL_S + number
    times = {"scheduled_s": WALL_S + start_s, "first_token_s": WALL_S + start_s, "time_s": WALL_S + 10.0}
    return [
        structs.replace(ARRIVED, request_id=name, arrival_s=arrival_s),
        structs.replace(FINISHED, request_id=name, arrival_s=arrival_s, **times),
    ]
