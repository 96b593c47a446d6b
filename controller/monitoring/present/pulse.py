"""The last quarter of an hour in figures, for *Now*, `status` and the verdict: also while the history cannot be read.

The control loop adds to the open bin; closed bins never change, so that readers in other threads need no lock.
Latencies are those of requests that ended, by the controller's clock; each bin holds a histogram, not the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from controller.core.sessions import Session
from controller.monitoring.request_tracker import TrackedRequest
from engine_adapter.serving.latency_histogram import Latencies
from store.entries import Entry
from store.records import Arrived, Finished, Snapshot
from store.service_levels import course_of, judge, level_of, service_level

BIN_S = 2.5
BINS = 360
"""A quarter of an hour."""
ENGINES = 256
"""Largest number of engines with figures of their own; those of others are added up under one name."""
OTHERS = "others"
CLASSES = 64

LATE_TURN_S = 0.5
"""A turn of the control loop that takes longer is late: arrivals are deferred from then on."""


@dataclass(slots=True)
class EngineBin:
    """What happened on one engine within a bin."""

    arrived: int = 0
    ended: int = 0
    waiting: int | None = None
    """Requests in its queue at the end of the bin; None where it was not connected."""
    waiting_s: float = 0.0
    """Engine-seconds that these are expected to need."""
    ttft: Latencies = field(default_factory=Latencies)
    ttlt: Latencies = field(default_factory=Latencies)
    dropped: int = 0
    """Messages that the engine's side dropped."""
    preemptions: int = 0
    output_tokens: int = 0
    computed_tokens: int = 0
    recomputed_tokens: int = 0


@dataclass(slots=True)
class Bin:
    """What happened within `BIN_S` seconds."""

    end_s: float
    engines: dict[str, EngineBin] = field(default_factory=dict)
    judged: dict[tuple[str, float], list[int]] = field(default_factory=dict)
    """Requests that were judged and of these that missed a target, by class and its objective."""
    overdue: dict[tuple[str, float], int] = field(default_factory=dict)
    """Requests that waited at its end for longer than their target of the first token, likewise."""
    late_s: float = 0.0
    """Time in turns of the control loop longer than `LATE_TURN_S`."""
    held_s: float = 0.0
    """Time in which the loop had work and did not run."""


class Pulse:
    """Counts what passes the control loop, in bins of `BIN_S` seconds.

    Args:
        held: Seconds in which the loop had work and did not run, since it started.
    """

    def __init__(self, held: Callable[[], float] = lambda: 0.0) -> None:
        self.bins: tuple[Bin, ...] = ()
        """The closed bins, oldest first; replaced as a whole."""
        self._open: Bin | None = None
        self._held = held
        self._held_before_s = 0.0
        self._dropped: dict[str, int] = {}
        """Messages that each session has dropped since its start."""

    def observe(self, entry: Entry, request: TrackedRequest | None, now_s: float) -> None:
        """Count an entry of the history; ``request`` is what else is recorded about the request of an end."""
        record = entry.record
        if not isinstance(record, Arrived | Finished | Snapshot):
            return
        here = self._at(now_s)
        engine = _of(here, entry.engine_id)
        if isinstance(record, Arrived):
            engine.arrived += not record.resent
        elif isinstance(record, Finished):
            _count_end(here, engine, record, request)
        else:
            engine.preemptions += record.preemptions
            engine.recomputed_tokens += record.recomputed_tokens
            engine.computed_tokens += record.prefill_tokens + record.decode_tokens
            engine.output_tokens += record.decode_tokens

    def turn(self, took_s: float, now_s: float) -> None:
        """Count a turn of the control loop."""
        if took_s > LATE_TURN_S:
            self._at(now_s).late_s += took_s

    def close_due(self, sessions: Iterable[Session], now_s: float) -> None:
        """Close the bins that are over, with the queues as they are."""
        ended = self._at(now_s)
        if now_s < ended.end_s:
            return
        connected = [(session, session.snapshot) for session in sessions if session.connected and session.snapshot]
        for session, snapshot in connected:
            engine = _of(ended, session.hello.engine_id)
            engine.waiting = (engine.waiting or 0) + snapshot.waiting
            if snapshot.waiting:
                engine.waiting_s += _count_waiting(ended, session, now_s - session.clock.s)
            dropped = snapshot.messages_dropped
            engine.dropped += dropped - self._dropped.get(session.hello.session_id, dropped)
        self._dropped = {session.hello.session_id: snapshot.messages_dropped for session, snapshot in connected}
        held_s = self._held()
        ended.held_s, self._held_before_s = held_s - self._held_before_s, held_s
        self.bins = (*self.bins, ended)[-BINS:]
        self._open = Bin(end_s=max(ended.end_s + BIN_S, BIN_S * (now_s // BIN_S + 1)))

    def _at(self, now_s: float) -> Bin:
        """The open bin; the first one begins when it is asked for."""
        if self._open is None:
            self._open = Bin(end_s=BIN_S * (now_s // BIN_S + 1))
        return self._open


def _of(here: Bin, engine_id: str) -> EngineBin:
    known = engine_id in here.engines or len(here.engines) < ENGINES
    return here.engines.setdefault(engine_id if known else OTHERS, EngineBin())


def _count_waiting(here: Bin, session: Session, now_s: float) -> float:
    """Count those that wait too long; returns the engine-seconds that all who wait for a token are expected to need.

    Both are 0 where no requests are followed, as in mode off.
    """
    work_s = 0.0
    for request in session.requests.values():
        if request.first_token_s is not None:
            continue
        work_s += request.cost_s
        promise = request.promise
        level = service_level(promise.service_class, promise.targets, promise.objective)
        if level.targets.ttft_s is not None and now_s - request.arrived.arrival_s > level.targets.ttft_s:
            key = (level.service_class, level.objective)
            here.overdue[key] = here.overdue.get(key, 0) + 1
    return work_s


def _count_end(here: Bin, engine: EngineBin, fact: Finished, request: TrackedRequest | None) -> None:
    engine.ended += 1
    course = course_of(fact)
    if fact.first_token_s is not None:
        engine.ttft.add(course.ttft_s)
    if fact.reason not in {"abort", "error"}:
        engine.ttlt.add(fact.time_s - fact.arrival_s)
    level = level_of(request.promised if request else None)
    judged = judge(course, level.targets)
    key = (level.service_class, level.objective)
    if judged.met is not None and (key in here.judged or len(here.judged) < CLASSES):
        counts = here.judged.setdefault(key, [0, 0])
        counts[0] += 1
        counts[1] += not judged.met


def latest(bins: Sequence[Bin], span_s: float, now_s: float) -> Sequence[Bin]:
    """The bins that ended within the last seconds."""
    return [each for each in bins if each.end_s > now_s - span_s - BIN_S]


def chosen(at: Bin, names: frozenset[str] | None) -> list[EngineBin]:
    """The figures of the engines of these names, or of all."""
    return [engine for name, engine in at.engines.items() if names is None or name in names]


def merged(parts: Iterable[Latencies]) -> Latencies:
    """The latencies of several bins or engines together."""
    whole = Latencies()
    for part in parts:
        whole.merge(part.counts, part.longest_s)
    return whole
