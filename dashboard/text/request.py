"""One request in one sentence; nothing here knows Streamlit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from store.formatting import count, span
from store.http_requests import Cause, RequestTimeline, Wait

_BRIEF_S = 0.5
"""A shorter wait needs no reason."""
_BECAUSE: dict[Cause, str] = {
    "gate": "the free KV memory was reserved for running requests to grow",
    "memory": "KV memory was full",
    "slots": "the batch was full (max_num_seqs)",
    "step": "the engine was computing a step",
}


def lead(timeline: RequestTimeline, waits: Sequence[Wait]) -> str:
    """Say how long a request waited and why, and how long it ran.

    Args:
        timeline: the facts of the request.
        waits: its wait for the first start, by causes; empty where they are not known.
    """
    end_s = timeline.until_s
    if timeline.started_s is None:
        waited = f"{'Waited' if timeline.finished_s else 'Has waited'} {span(end_s - timeline.arrival_s)}"
        ending = f", then {_ended(timeline)} before it started" if timeline.finished_s else ""
        return f"{waited}{_why(timeline, waits, end_s - timeline.arrival_s)}{ending}."
    wait_s, run_s = timeline.started_s - timeline.arrival_s, end_s - timeline.started_s
    ran = f"{'ran' if timeline.finished_s else 'has run'} {span(run_s)}"
    lost = len(timeline.losses)
    preempted = f", preempted {'once' if lost == 1 else f'{count(lost)} times'}" if lost else ""
    ending = f", {_ended(timeline)}" if timeline.finished_s and timeline.reason != "stop" else ""
    return f"Waited {span(wait_s)}{_why(timeline, waits, wait_s)}; {ran}{preempted}{ending}."


def _why(timeline: RequestTimeline, waits: Sequence[Wait], wait_s: float) -> str:
    """The cause of most of a wait, and how many requests were ahead."""
    causes: defaultdict[Cause, float] = defaultdict(float)
    for wait in waits:
        causes[wait.cause] += wait.span_s
    if wait_s < _BRIEF_S or not causes:
        return ""
    ahead = max((moment.ahead for moment in timeline.moments if moment.ahead is not None), default=0)
    others = f"{count(ahead)} requests were ahead and " if ahead > 1 and any(wait.behind for wait in waits) else ""
    return f" because {others}{_BECAUSE[max(causes, key=causes.__getitem__)]}"


def _ended(timeline: RequestTimeline) -> str:
    return {
        "stop": "ended",
        "length": "ended at max_tokens",
        "abort": "was shed" if timeline.shed else "was aborted by its client",
        "error": "failed",
    }[timeline.reason or "error"]
