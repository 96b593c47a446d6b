"""Sentences about the queue: who was served before a request, what it waited for, and what it lost on the way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from controller.explain.formatting import count, listed
from controller.explain.wait_causes import absences_s, fallbacks, first_wait_s, moment_at, order_at, waits
from store.formatting import percent, span
from store.http_requests import Loss, Overtaker, RequestTimeline, Wait, Why
from store.reading.request_timeline import COMPETING_LIMIT

EXAMPLES = 3
"""Largest number of overtaking requests that are named."""
CHANGES_TOLD = 5
"""Largest number of changes of the settings, of fallbacks and of preemptions that have a sentence each."""

AT_ONCE_S = 0.1
"""Snapshots come ten times a second: the causes of a shorter wait are not reported."""

_WHYS: dict[Why, str] = {
    "class": "by their strict class",
    "index": "because their index put them first",
    "prior": "while one of the two had no table of its own yet and stood with the prior's index",
    "engine": "while the engine served its own order",
    "unexplained": "for a reason that is not on record (their class and index do not put them first)",
}

_CAUSES = {
    "slots": "the batch was full (max_num_seqs)",
    "memory": "the prompt of the next in line did not fit into the free KV memory",
    "gate": "the free KV memory was reserved for running requests to grow",
    "step": "the next in line waited only for the current step",
}


def queue(timeline: RequestTimeline, passed: Sequence[Overtaker]) -> Iterator[str]:
    """The queue at its arrival, and the requests that were served before it."""
    moment = moment_at(timeline, timeline.arrival_s)
    if moment is not None:
        yield f"When it arrived, {_requests(moment.waiting)} waited and {count(moment.running)} ran."
    _, started_s = first_wait_s(timeline)
    before = [seen.ahead for seen in timeline.moments if seen.ahead is not None and seen.time_s <= started_s]
    furthest = max(before, default=0)
    if furthest:
        yield f"In the queue, up to {count(furthest)} were ahead of it."
    at_least = "at least " if len(timeline.competing) >= COMPETING_LIMIT else ""
    earlier = len(timeline.competing) - len(passed)
    if earlier:
        yield f"While it waited, {at_least}{_requests(earlier)} that had arrived earlier started."
    if not passed:
        if timeline.started_s is not None or timeline.moments:
            yield "No request that arrived later started before it."
        return
    yield f"Before it, {at_least}{_requests(len(passed))} that arrived later started."
    reasons = Counter(overtaker.why for overtaker in passed)
    for why, number in reasons.most_common():
        which = f"{count(number)} of these" if number < len(passed) else "All of these" if number > 1 else "That was"
        yield f"{which} {_WHYS[why]}{_examples(timeline, passed, why)}."


def _examples(timeline: RequestTimeline, passed: Sequence[Overtaker], why: Why) -> str:
    if why == "unexplained":
        return f" ({listed([overtaker.request_id for overtaker in passed if overtaker.why == why][:EXAMPLES])})"
    if why != "index":
        return ""
    order = order_at(timeline, timeline.arrival_s)
    shown = [overtaker for overtaker in passed if overtaker.why == why][:EXAMPLES]
    examples = [
        f"{other.request_id} came {span(other.arrival_s - timeline.arrival_s)} later with an index of "
        f"{other.index_s:.3g} s against {other.own_index_s:.3g} s"
        for other in shown
    ]
    boost = order.boost_per_s if order else None
    rule = "" if boost is None else f" with the boost of {boost:g} per second, which weighs index against age,"
    return f",{rule} such as {listed(examples)}" if rule else f", such as {listed(examples)}"


def wait(timeline: RequestTimeline, waited: Sequence[Wait]) -> Iterator[str]:
    """The causes of its wait for the first place."""
    since_s, until_s = first_wait_s(timeline)
    whole_s = until_s - since_s
    if timeline.started_s is not None:
        yield f"It started {span(whole_s)} after its arrival."
    elif timeline.finished_s is not None:
        yield f"It never started and left after {span(whole_s)}."
    else:
        yield f"It has waited {span(whole_s)} and has not started yet."
    if whole_s < AT_ONCE_S:
        return
    if not waited:
        yield "The engine reported no snapshot of that time, so the cause is not recorded."
        return
    yield f"Of this time, {_by_cause(waited)}{_coverage(waited, whole_s)}."
    behind_s = sum(part.span_s for part in waited if part.behind)
    if behind_s > 0.0:
        yield f"For {span(behind_s)} of it others were ahead, so that this delayed them first."


def _by_cause(waited: Sequence[Wait]) -> str:
    spans: dict[str, float] = defaultdict(float)
    for part in waited:
        spans[part.cause] += part.span_s
    return listed([f"for {span(spans[cause])} {_CAUSES[cause]}" for cause in sorted(spans, key=lambda c: -spans[c])])


def _coverage(waited: Sequence[Wait], whole_s: float) -> str:
    known_s = sum(part.span_s for part in waited)
    return "" if known_s > 0.9 * whole_s else f" (snapshots cover {percent(known_s / whole_s)} of it)"


def preemptions(timeline: RequestTimeline) -> Iterator[str]:
    """Its preemptions and their costs."""
    if not timeline.losses:
        if timeline.started_s is not None:
            yield "It was never preempted."
        return
    absences = absences_s(timeline)
    for loss, (_, back_s) in list(zip(timeline.losses, absences, strict=True))[:CHANGES_TOLD]:
        yield _loss(timeline, loss, back_s)
    away = [
        part
        for since_s, back_s in absences
        for part in waits(timeline, since_s, timeline.until_s if back_s is None else back_s)
    ]
    if sum(part.span_s for part in away) >= AT_ONCE_S:
        yield f"While it was preempted, {_by_cause(away)}."
    if len(timeline.losses) > CHANGES_TOLD:
        yield f"It was preempted {count(len(timeline.losses))} times in all."
    lost = sum(loss.lost_tokens for loss in timeline.losses)
    again = timeline.recomputed_tokens
    if again is not None and timeline.output_tokens is not None:
        own = timeline.prompt_tokens + timeline.output_tokens
        yield f"Because of that {count(again)} tokens were computed again, {percent(again / max(1, own + again))} of all that were computed for it."
    else:
        yield f"That makes {count(lost)} computed tokens lost so far."


def _loss(timeline: RequestTimeline, loss: Loss, back_s: float | None) -> str:
    why = "because KV memory was full" if loss.cause == "memory" else "in favour of a request with a lower index"
    after = (
        f"it was seen running again {span(back_s - loss.time_s)} later"
        if back_s is not None
        else f"it was not seen running again in the {span(timeline.until_s - loss.time_s)} since"
    )
    return (
        f"{span(loss.time_s - timeline.arrival_s)} after its arrival, with {count(loss.attained_tokens)} output tokens, it was "
        f"preempted {why} and lost {count(loss.lost_tokens)} computed tokens; {after}."
    )


def modes(timeline: RequestTimeline) -> Iterator[str]:
    """The mode in force, its changes, and fallbacks."""
    seen = {moment.mode for moment in timeline.moments if moment.time_s >= timeline.arrival_s}
    spans = fallbacks(timeline)
    if len(seen) == 1 and not spans:
        (mode,) = seen
        yield f"Mode {mode} was in force throughout{_meaning(mode)}."
    changes = [order for order in timeline.orders if order.time_s > timeline.arrival_s]
    for order in changes[:CHANGES_TOLD]:
        yield (
            f"{span(order.time_s - timeline.arrival_s)} after its arrival the settings changed: {order.reason} (mode {order.mode})."
        )
    for start_s, end_s, reason in spans[:CHANGES_TOLD]:
        yield (
            f"From {span(start_s - timeline.arrival_s)} after its arrival on, for {span(end_s - start_s)}, the engine had fallen "
            f"back to its own order ({reason})."
        )


def _meaning(mode: str) -> str:
    return {"on": "", "shadow": ": it decided nothing, the engine served its own order"}.get(
        mode, ": the engine served its own order"
    )


def _requests(number: int) -> str:
    return "no request" if number == 0 else "one request" if number == 1 else f"{count(number)} requests"
