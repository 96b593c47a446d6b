"""The causes of a request's wait, from recorded facts: who was served before it and why, and what held the queue.

Nothing is guessed: where the record does not explain an overtaking, its reason is ``unexplained``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from engine_adapter.ordering.boost import boost_s
from store.http_requests import Cause, Choice, CompetingRequest, Moment, Order, Overtaker, RequestTimeline, Wait, Why

LONGEST_GAP_S = 2.0
"""Longest time for which a snapshot stands if the next one is later."""


def overtakers(timeline: RequestTimeline) -> tuple[Overtaker, ...]:
    """Requests that arrived later and got their first place earlier, in the order of these places."""
    later = sorted(
        (other for other in timeline.competing if other.arrival_s > timeline.arrival_s),
        key=lambda request: request.scheduled_s,
    )
    return tuple(
        Overtaker(
            request_id=other.request_id,
            arrival_s=other.arrival_s,
            scheduled_s=other.scheduled_s,
            priority=other.priority,
            index_s=other.index_s,
            own_index_s=index_while_waiting(timeline, other.scheduled_s),
            why=_why(timeline, other),
        )
        for other in later
    )


def first_wait_s(timeline: RequestTimeline) -> tuple[float, float]:
    """Begin and end of the wait for the first place."""
    return timeline.arrival_s, timeline.until_s if timeline.started_s is None else timeline.started_s


def absences_s(timeline: RequestTimeline) -> list[tuple[float, float | None]]:
    """Times at which it lost its place, each with the time at which it was seen running again, or None."""
    back = [moment.time_s for moment in timeline.moments if moment.attained_tokens is not None]
    return [(loss.time_s, next((time_s for time_s in back if time_s > loss.time_s), None)) for loss in timeline.losses]


def waits(timeline: RequestTimeline, since_s: float, until_s: float) -> tuple[Wait, ...]:
    """The causes of a wait from the snapshots of that time, the longest first."""
    spans: dict[tuple[Cause, bool], float] = defaultdict(float)
    for moment, span_s in _moments_within(timeline, since_s, until_s):
        behind = moment.ahead is None or moment.ahead > 0
        spans[_cause(timeline, moment), behind] += span_s
    ordered = sorted(spans.items(), key=lambda item: -item[1])
    return tuple(Wait(cause=cause, behind=behind, span_s=span_s) for (cause, behind), span_s in ordered)


def index_while_waiting(timeline: RequestTimeline, time_s: float) -> float | None:
    """The index at a moment of a request without output tokens; None without a table."""
    choice = _choice_at(timeline, time_s)
    return choice.table_index_s[0] if choice else None


def order_value(arrival_s: float, index_s: float, boost_per_s: float | None) -> float:
    """The value that the engine sorts by within a class: the lowest is served first, equals by arrival.

    >>> order_value(10.0, 2.0, None)
    2.0
    >>> order_value(10.0, 2.0, 0.01) < order_value(10.0, 3.0, 0.01)
    True
    """
    return index_s if boost_per_s is None else arrival_s - boost_s(index_s, boost_per_s)


def order_at(timeline: RequestTimeline, time_s: float) -> Order | None:
    """The last settings that were sent up to a moment."""
    sent = [order for order in timeline.orders if order.time_s <= time_s]
    return sent[-1] if sent else None


def moment_at(timeline: RequestTimeline, time_s: float) -> Moment | None:
    """The last snapshot at or before a moment."""
    seen = [moment for moment in timeline.moments if moment.time_s <= time_s]
    return seen[-1] if seen else None


def _why(timeline: RequestTimeline, other: CompetingRequest) -> Why:
    own_class = timeline.priority or 0
    if other.priority != own_class:
        return "class" if other.priority < own_class else "unexplained"
    moment = moment_at(timeline, other.scheduled_s)
    order = order_at(timeline, other.scheduled_s)
    if (moment.mode if moment else order.mode if order else "on") != "on":
        return "engine"
    choice = _choice_at(timeline, other.scheduled_s)
    if choice is None or other.index_s is None:
        return "prior"
    boost_per_s = order.boost_per_s if order else None
    own = order_value(timeline.arrival_s, choice.table_index_s[0], boost_per_s)
    return "index" if order_value(other.arrival_s, other.index_s, boost_per_s) < own else "unexplained"


def _choice_at(timeline: RequestTimeline, time_s: float) -> Choice | None:
    """The last table that was published for it up to a moment."""
    decided = [choice for choice in timeline.choices if choice.time_s <= time_s]
    return decided[-1] if decided else None


def _moments_within(timeline: RequestTimeline, since_s: float, until_s: float) -> Iterator[tuple[Moment, float]]:
    """Snapshots that stand for a part of a span, each with the seconds of that part."""
    for moment, following in pairwise((*timeline.moments, None)):
        assert moment is not None, "only the last has no follower"
        next_s = following.time_s if following else math.inf
        span_s = min(next_s, until_s, moment.time_s + LONGEST_GAP_S) - max(moment.time_s, since_s)
        if span_s > 0.0:
            yield moment, span_s


def _cause(timeline: RequestTimeline, moment: Moment) -> Cause:
    if timeline.max_num_seqs is not None and moment.running >= timeline.max_num_seqs:
        return "slots"
    prompt_tokens = timeline.prompt_tokens if moment.ahead == 0 else moment.head_prompt_tokens
    free = moment.kv_blocks - moment.kv_blocks_used
    if (
        prompt_tokens is not None
        and timeline.block_size_tokens
        and free < math.ceil(prompt_tokens / timeline.block_size_tokens)
    ):
        return "memory"
    if moment.admission_limit is not None and moment.running >= moment.admission_limit:
        return "gate"
    return "step"


def fallbacks(timeline: RequestTimeline) -> list[tuple[float, float, str]]:
    """Spans of its timeline in which the engine had fallen back to its own order: start, end, reason."""
    found: list[tuple[float, float, str]] = []
    for moment, following in pairwise((*timeline.moments, None)):
        assert moment is not None, "only the last has no follower"
        if moment.fallback is None or moment.time_s > timeline.until_s:
            continue
        end_s = min(timeline.until_s, following.time_s if following else timeline.until_s)
        if found and found[-1][2] == moment.fallback and moment.time_s - found[-1][1] < LONGEST_GAP_S:
            found[-1] = (found[-1][0], end_s, moment.fallback)
        else:
            found.append((max(moment.time_s, timeline.arrival_s), end_s, moment.fallback))
    return [span for span in found if span[1] > span[0]]
