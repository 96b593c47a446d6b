"""Why a request waited, from recorded facts alone: who was served before it and why, and what held the queue.

Nothing is guessed: where the record does not explain what happened, the answer says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from engine_adapter.ordering.ordering import boost_s
from engine_adapter.ordering.running_order import FIRST
from store.http_requests import Cause, Choice, Moment, Order, Overtaker, RequestTimeline, Rival, Wait, Why

LONGEST_GAP_S = 2.0
"""A snapshot speaks for the time until the next one, but for no more than this."""


def overtakers(timeline: RequestTimeline) -> tuple[Overtaker, ...]:
    """Requests that arrived later and were given their first place earlier, in the order in which they were."""
    later = sorted(
        (rival for rival in timeline.rivals if rival.arrival_s > timeline.arrival_s), key=lambda r: r.scheduled_s
    )
    return tuple(
        Overtaker(
            request_id=rival.request_id,
            arrival_s=rival.arrival_s,
            scheduled_s=rival.scheduled_s,
            priority=rival.priority,
            index_s=rival.index_s,
            own_index_s=index_while_waiting(timeline, rival.scheduled_s),
            why=_why(timeline, rival),
        )
        for rival in later
    )


def first_wait_s(timeline: RequestTimeline) -> tuple[float, float]:
    """Begin and end of the wait for the first place."""
    return timeline.arrival_s, timeline.until_s if timeline.started_s is None else timeline.started_s


def absences_s(timeline: RequestTimeline) -> list[tuple[float, float | None]]:
    """When it lost its place and when it was seen running again; None if it was not."""
    back = [moment.time_s for moment in timeline.moments if moment.attained_tokens is not None]
    return [(loss.time_s, next((time_s for time_s in back if time_s > loss.time_s), None)) for loss in timeline.losses]


def waits(timeline: RequestTimeline, since_s: float, until_s: float) -> tuple[Wait, ...]:
    """A time without a place by its causes, as snapshots tell, the longest first."""
    spans: dict[tuple[Cause, bool], float] = defaultdict(float)
    for moment, span_s in _moments_within(timeline, since_s, until_s):
        behind = moment.ahead is None or moment.ahead > 0
        spans[_cause(timeline, moment), behind] += span_s
    ordered = sorted(spans.items(), key=lambda item: -item[1])
    return tuple(Wait(cause=cause, behind=behind, span_s=span_s) for (cause, behind), span_s in ordered)


def index_while_waiting(timeline: RequestTimeline, time_s: float) -> float | None:
    """The index with which a request without output tokens stood in the queue at a moment; None without a table."""
    choice = _choice_at(timeline, time_s)
    return choice.table_index_s[0] if choice else None


def order_value(arrival_s: float, index_s: float, boost_per_s: float | None, *, overdue: bool = False) -> float:
    """What the engine sorts by within a class; lower is served first, and of equals who came first.

    >>> order_value(10.0, 2.0, None), order_value(10.0, 2.0, None, overdue=True)
    (2.0, -inf)
    >>> order_value(10.0, 2.0, 0.01) < order_value(10.0, 3.0, 0.01)
    True
    """
    if overdue:
        return FIRST
    return index_s if boost_per_s is None else arrival_s - boost_s(index_s, boost_per_s)


def order_at(timeline: RequestTimeline, time_s: float) -> Order | None:
    """The settings that had last been sent at a moment."""
    sent = [order for order in timeline.orders if order.time_s <= time_s]
    return sent[-1] if sent else None


def moment_at(timeline: RequestTimeline, time_s: float) -> Moment | None:
    """The last snapshot at or before a moment."""
    seen = [moment for moment in timeline.moments if moment.time_s <= time_s]
    return seen[-1] if seen else None


def _why(timeline: RequestTimeline, rival: Rival) -> Why:
    own_class = timeline.priority or 0
    if rival.priority != own_class:
        return "class" if rival.priority < own_class else "unexplained"
    moment = moment_at(timeline, rival.scheduled_s)
    order = order_at(timeline, rival.scheduled_s)
    if (moment.mode if moment else order.mode if order else "on") != "on":
        return "engine"
    choice = _choice_at(timeline, rival.scheduled_s)
    overdue = _overdue(timeline.arrival_s, choice.patience_s if choice else None, rival.scheduled_s)
    if _overdue(rival.arrival_s, rival.patience_s, rival.scheduled_s):
        return "unexplained" if overdue else "patience"
    if choice is None or rival.index_s is None:
        return "prior"
    boost_per_s = order.boost_per_s if order else None
    own = order_value(timeline.arrival_s, choice.table_index_s[0], boost_per_s, overdue=overdue)
    other = order_value(rival.arrival_s, rival.index_s, boost_per_s)
    return "index" if other < own else "unexplained"


def _choice_at(timeline: RequestTimeline, time_s: float) -> Choice | None:
    """The table that had last been published for it at a moment."""
    decided = [choice for choice in timeline.choices if choice.time_s <= time_s]
    return decided[-1] if decided else None


def _overdue(arrival_s: float, patience_s: float | None, time_s: float) -> bool:
    """Whether a request goes before all others of its class because it has waited for too long."""
    return patience_s is not None and arrival_s + patience_s <= time_s


def _moments_within(timeline: RequestTimeline, since_s: float, until_s: float) -> Iterator[tuple[Moment, float]]:
    """Snapshots that speak for a part of a span, each with the seconds that it speaks for."""
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
    """Spans of its timeline in which the engine had fallen back to its own order: start, end, why."""
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
