"""Sentences about what a request was promised, where its time went, and which target it missed by how much."""

from __future__ import annotations

from collections.abc import Iterator

from controller.explain.formatting import listed
from controller.explain.wait_causes import absences_s
from store.formatting import span
from store.http_requests import RequestTimeline
from store.records import Targets
from store.service_levels import MEANINGS, NOT_CONFIGURED, OWN_TARGETS, targets_in_words


def service(timeline: RequestTimeline) -> Iterator[str]:
    """What was promised, where the time went, and what came of it."""
    yield _promise(timeline)
    if timeline.session:
        yield f"It belongs to session {timeline.session}."
    yield from _spent(timeline)
    yield from _pauses(timeline)
    yield from _verdict(timeline)


def _promise(timeline: RequestTimeline) -> str:
    level = timeline.level
    asked = targets_in_words(level.targets)
    whose = f", and is charged to {timeline.account}" if timeline.account else ""
    if level.service_class == NOT_CONFIGURED:
        return f"It is in no service class{whose}; it is judged by the targets that are assumed then: {asked}."
    if level.service_class == OWN_TARGETS:
        return f"It is in no service class{whose}, and brought targets of its own: {asked}."
    return f"It is of service class {level.service_class}{whose}, with {asked or 'no targets'}."


def _spent(timeline: RequestTimeline) -> Iterator[str]:
    """Where the time went, as far as it is known; time without a place after a preemption stands by itself."""
    away = _away(timeline)
    started_s, first_s, until_s = timeline.started_s, timeline.first_token_s, timeline.until_s
    parts = [("in the queue", (until_s if started_s is None else started_s) - timeline.arrival_s)]
    if started_s is not None:
        prompt_until_s = until_s if first_s is None else first_s
        parts.append(("computing its prompt", prompt_until_s - started_s - _within(away, started_s, prompt_until_s)))
    if first_s is not None:
        parts.append(("decoding", until_s - first_s - _within(away, first_s, until_s)))
    if away:
        parts.append(("without a place after being preempted", sum(back_s - lost_s for lost_s, back_s in away)))
    named = [f"{span(spent_s)} {what}" for what, spent_s in parts if spent_s >= 0.0005]
    if named:
        so_far = "" if timeline.finished_s is not None else " so far"
        yield f"Of its {span(until_s - timeline.arrival_s)}{so_far} it spent {listed(named)}."


def _away(timeline: RequestTimeline) -> list[tuple[float, float]]:
    """Spans without a place after a preemption whose ends are known, one after the other."""
    spans: list[tuple[float, float]] = []
    for lost_s, back_s in absences_s(timeline):
        if back_s is not None and (not spans or lost_s >= spans[-1][1]):
            spans.append((lost_s, min(back_s, timeline.until_s)))
    return spans


def _within(spans: list[tuple[float, float]], since_s: float, until_s: float) -> float:
    return sum(max(0.0, min(end_s, until_s) - max(begin_s, since_s)) for begin_s, end_s in spans)


def _pauses(timeline: RequestTimeline) -> Iterator[str]:
    if timeline.itl_max_s is not None:
        usual = "" if timeline.itl_p99_s is None else f"; 99% of them took at most {span(timeline.itl_p99_s)}"
        yield f"The longest time between two of its tokens was {span(timeline.itl_max_s)}{usual}."


def _verdict(timeline: RequestTimeline) -> Iterator[str]:
    judged = timeline.judgement
    if judged is None:
        yield from _so_far(timeline)
    elif judged.met is None:
        if timeline.level.targets != Targets():
            yield "It does not count: its client left before the first token."
    elif judged.cause is None:
        yield "It met all its targets."
    else:
        missed = _missed(timeline)
        yield f"It missed {listed(missed) if missed else 'its targets'}: {MEANINGS[judged.cause]}."


def _missed(timeline: RequestTimeline) -> list[str]:
    """The targets that it missed, each with by how much."""
    course, targets = timeline.course, timeline.level.targets
    took = (
        ("TTFT", course.ttft_s, targets.ttft_s, ""),
        ("TPOT", course.tpot_s, targets.tpot_s, " a token"),
        ("end-to-end", course.finished_s - course.arrival_s, targets.e2e_s, ""),
    )
    return [
        f"its {name} target by {span(took_s - target_s)}{each}"
        for name, took_s, target_s, each in took
        if took_s is not None and target_s is not None and took_s > target_s
    ]


def _so_far(timeline: RequestTimeline) -> Iterator[str]:
    """What can be said of an unfinished request: targets that passed, or the time that is left for the next one."""
    age_s, targets = timeline.until_s - timeline.arrival_s, timeline.level.targets
    waits_for = (("first token", None if timeline.first_token_s else targets.ttft_s), ("end", targets.e2e_s))
    for name, target_s in waits_for:
        if target_s is None:
            continue
        left_s = target_s - age_s
        yield (
            f"Its {name} is late by {span(-left_s)}." if left_s < 0.0 else f"Its {name} is due within {span(left_s)}."
        )
