"""Keeps what metrics and spans need of a completed request: its arrival, promise, prediction, first decision and preemptions.

It is bounded, and only the control loop's thread uses it; everything else about the recent past is in the history.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from store.entries import Decision, EngineSeen, Entry, Prediction, Promised
from store.records import Arrived, Finished, Hello, Preempted

REQUESTS_KEPT = 10_000
PREEMPTIONS_KEPT = 50
SESSIONS_KEPT = 256

Key = TypeVar("Key")
Value = TypeVar("Value")


class TrackedRequest(msgspec.Struct, eq=False, gc=False):
    """What was recorded about one unfinished request; None for what was not."""

    engine_id: str
    arrived: Arrived | None = None
    prediction: Prediction | None = None
    """The first one."""
    decision: Decision | None = None
    """The first one."""
    promised: Promised | None = None
    """The last one."""
    preempted_s: list[float] = msgspec.field(default_factory=list)


class RequestTracker:
    """Keeps unfinished requests, and the hello of each session."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str], TrackedRequest] = {}
        self._hellos: dict[str, Hello] = {}

    def observe(self, entry: Entry) -> TrackedRequest | None:
        """Update a request from an entry, and return the request; a completed one is forgotten."""
        match entry.record:
            case Arrived() | Prediction() | Decision() | Promised() | Preempted() as record:
                return self._keep(entry, record)
            case Finished(request_id=request_id):
                return self._requests.pop((entry.session_id, request_id), None)
            case EngineSeen(hello=hello):
                _put(self._hellos, entry.session_id, hello, SESSIONS_KEPT)
        return None

    def hello(self, session_id: str) -> Hello | None:
        """The hello of a session."""
        return self._hellos.get(session_id)

    def _keep(self, entry: Entry, record: Arrived | Prediction | Decision | Promised | Preempted) -> TrackedRequest:
        key = (entry.session_id, record.request_id)
        request = self._requests.get(key)
        if request is None:
            request = TrackedRequest(entry.engine_id)
            _put(self._requests, key, request, REQUESTS_KEPT)
        match record:
            case Arrived():
                request.arrived = request.arrived or msgspec.structs.replace(record, token_ids=b"")
            case Prediction():
                request.prediction = request.prediction or record
            case Decision():
                request.decision = request.decision or record
            case Promised():
                request.promised = record
            case Preempted() if len(request.preempted_s) < PREEMPTIONS_KEPT:
                request.preempted_s.append(record.time_s)
        return request


def _put(kept: dict[Key, Value], key: Key, value: Value, limit: int) -> None:
    """Keep a value, and drop the oldest one beyond the limit."""
    kept[key] = value
    if len(kept) > limit:
        del kept[next(iter(kept))]
