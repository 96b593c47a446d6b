"""The facts of the latest requests, kept in memory, so that they can be explained before the history shows them.

The control loop's thread writes, any thread reads.
All that is kept is bounded: unfinished requests, ended ones, and what is kept of each.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import msgspec

from store.entries import Decision, DriftDetected, EngineSeen, Entry, Outcome, Prediction, SettingsChanged
from store.reading.request_timeline import (
    MOMENTS_LIMIT,
    RIVALS_LIMIT,
    Choice,
    Loss,
    Moment,
    Order,
    Predicted,
    RequestTimeline,
    Rival,
    Shift,
    Verdict,
)
from store.records import Arrived, Finished, FirstToken, Hello, Preempted, Record, Snapshot

UNFINISHED_KEPT = 10_000
ENDED_KEPT = 2_000
CHOICES_KEPT = 8
LOSSES_KEPT = 50
SESSIONS_KEPT = 256
ORDERS_KEPT = 500
DRIFTS_KEPT = 100


@dataclass(slots=True, eq=False)
class RecentLife:
    """What is remembered of one request; each fact is None until it is told."""

    engine_id: str
    session_id: str
    arrived: Arrived | None = None
    first_token: FirstToken | None = None
    finished: Finished | None = None
    prediction: Prediction | None = None
    outcome: Outcome | None = None
    choices: deque[Decision] = field(default_factory=lambda: deque(maxlen=CHOICES_KEPT))
    losses: deque[Preempted] = field(default_factory=lambda: deque(maxlen=LOSSES_KEPT))

    @property
    def scheduled_s(self) -> float | None:
        """When it was first given a place, as far as that was told."""
        told = self.finished or self.first_token
        return told.scheduled_s if told else None


class RecentLives:
    """Remembers the latest requests; `take` is for the control loop, the rest for anyone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unfinished: dict[tuple[str, str], RecentLife] = {}
        self._ended: dict[tuple[str, str], RecentLife] = {}
        self._hellos: dict[str, Hello] = {}
        self._orders: deque[tuple[str, SettingsChanged]] = deque(maxlen=ORDERS_KEPT)
        self._drifts: deque[DriftDetected] = deque(maxlen=DRIFTS_KEPT)

    def take(self, entry: Entry) -> RecentLife | None:
        """Remember an entry of the history; gives the life that it is part of."""
        record = entry.record
        with self._lock:
            match record:
                case Arrived() | FirstToken() | Preempted() | Prediction() | Decision():
                    return self._note(entry, self._of(entry, record.request_id))
                case Finished() | Outcome():
                    return self._end(entry, record.request_id)
                case EngineSeen():
                    _put(self._hellos, entry.session_id, record.hello, SESSIONS_KEPT)
                case SettingsChanged():
                    self._orders.append((entry.session_id, record))
                case DriftDetected():
                    self._drifts.append(record)
                case _:
                    pass
        return None

    def hello(self, session_id: str) -> Hello | None:
        """How a session of an engine introduced itself."""
        return self._hellos.get(session_id)

    def timeline(
        self, request_id: str, snapshots: Iterable[tuple[str, Snapshot]], now_s: float
    ) -> RequestTimeline | None:
        """The facts of a request's life as far as they are remembered; None when it is not.

        ``snapshots`` are those of the last minutes with the engine's name, oldest first.
        """
        with self._lock:
            found = self._latest(request_id)
            if found is None:
                return None
            others = [
                life
                for kept in (self._ended, self._unfinished)
                for life in kept.values()
                if life.session_id == found.session_id and life is not found
            ]
            around = _Surroundings(
                others=others,
                hello=self._hellos.get(found.session_id),
                orders=[order for session_id, order in self._orders if session_id in {"", found.session_id}],
                drifts=list(self._drifts),
            )
        return _facts(found, around, snapshots, now_s)

    def is_whole(self, timeline: RequestTimeline, first_snapshot_s: float) -> bool:
        """Whether all of it is remembered, its rivals' too, so that the history can add nothing."""
        with self._lock:
            known = self._latest(timeline.request_id)
            oldest = next(iter(self._ended.values())) if len(self._ended) >= ENDED_KEPT else None
        forgotten_until_s = oldest.finished.time_s if oldest and oldest.finished else -math.inf
        return (
            known is not None
            and known.arrived is not None
            and not known.arrived.resent
            and len(known.choices) < CHOICES_KEPT
            and len(known.losses) < LOSSES_KEPT
            and max(first_snapshot_s, forgotten_until_s) <= timeline.arrival_s
        )

    def _of(self, entry: Entry, request_id: str) -> RecentLife:
        key = (entry.session_id, request_id)
        life = self._unfinished.get(key)
        if life is None:
            life = RecentLife(entry.engine_id, entry.session_id)
            _put(self._unfinished, key, life, UNFINISHED_KEPT)
        return life

    def _note(self, entry: Entry, life: RecentLife) -> RecentLife:
        match entry.record:
            case Arrived() as arrived if life.arrived is None:
                life.arrived = msgspec.structs.replace(arrived, token_ids=b"")
            case FirstToken() as first_token:
                life.first_token = first_token
            case Preempted() as loss:
                life.losses.append(loss)
            case Prediction() as prediction if life.prediction is None:
                life.prediction = prediction
            case Decision() as decision:
                life.choices.append(decision)
            case _:
                pass
        return life

    def _end(self, entry: Entry, request_id: str) -> RecentLife:
        key = (entry.session_id, request_id)
        life = self._unfinished.pop(key, None) or self._ended.get(key) or RecentLife(entry.engine_id, entry.session_id)
        if isinstance(entry.record, Finished):
            life.finished = entry.record
        elif isinstance(entry.record, Outcome):
            life.outcome = entry.record
        _put(self._ended, key, life, ENDED_KEPT)
        return life

    def _latest(self, request_id: str) -> RecentLife | None:
        known = [
            kept.get((session_id, request_id))
            for kept in (self._unfinished, self._ended)
            for session_id in self._hellos
        ]
        lives = [life for life in known if life is not None and _arrival_s(life) is not None]
        return max(lives, key=lambda life: _arrival_s(life) or -math.inf, default=None)


Key = TypeVar("Key")
Value = TypeVar("Value")


def _put(kept: dict[Key, Value], key: Key, value: Value, limit: int) -> None:
    """Keep a value; the oldest goes when there are more than the limit."""
    kept[key] = value
    if len(kept) > limit:
        del kept[next(iter(kept))]


def _arrival_s(life: RecentLife) -> float | None:
    told = life.finished or life.arrived
    return told.arrival_s if told else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    """What else is remembered that concerns a life."""

    others: Sequence[RecentLife]
    hello: Hello | None
    orders: Sequence[SettingsChanged]
    drifts: Sequence[DriftDetected]


def _facts(
    life: RecentLife, around: _Surroundings, snapshots: Iterable[tuple[str, Snapshot]], now_s: float
) -> RequestTimeline:
    told = life.finished or life.arrived
    assert told is not None, "a life is shown when its arrival or its end is known"
    until_s = life.finished.time_s if life.finished else max(now_s, told.arrival_s)
    known = _known(around.hello, life.arrived, life.first_token, life.finished)
    known |= {"engine_id": life.engine_id, "session_id": life.session_id, "known_until_s": until_s}
    if life.finished:
        known["finished_s"] = life.finished.time_s
    elif life.first_token:
        known["first_token_s"] = life.first_token.time_s
    facts = RequestTimeline(
        **known,
        predicted=_piece(life.prediction, Predicted),
        verdict=_piece(life.outcome, Verdict),
        choices=tuple(msgspec.convert(list(life.choices), list[Choice], from_attributes=True)),
        losses=tuple(msgspec.convert(list(life.losses), list[Loss], from_attributes=True)),
        moments=_moments(life, around.others, snapshots, told.arrival_s - 1.0, until_s),
        orders=_orders(around.orders, told.arrival_s, until_s),
        shifts=_shifts(around, life.prediction.cluster if life.prediction else None, told.arrival_s, until_s),
    )
    started_s = until_s if facts.started_s is None else facts.started_s
    return msgspec.structs.replace(facts, rivals=_rivals(around.others, facts.arrival_s, started_s))


def _known(*records: Record | None) -> dict[str, Any]:
    """What the records say of a life, under its own names; a later record is right where two differ."""
    return {
        name: value
        for record in records
        for name in RequestTimeline.__struct_fields__
        if (value := getattr(record, name, None)) is not None
    }


def _shifts(around: _Surroundings, cluster: int | None, since_s: float, until_s: float) -> tuple[Shift, ...]:
    model = around.hello.model if around.hello else None
    return tuple(
        msgspec.convert(drift, Shift, from_attributes=True)
        for drift in around.drifts
        if (drift.model, drift.cluster) == (model, cluster) and since_s <= drift.time_s <= until_s
    )


PieceType = TypeVar("PieceType")


def _piece(record: object | None, kind: type[PieceType]) -> PieceType | None:
    return None if record is None else msgspec.convert(record, kind, from_attributes=True)


def _rivals(others: Sequence[RecentLife], since_s: float, started_s: float) -> tuple[Rival, ...]:
    found: list[Rival] = []
    for other in others:
        told = other.finished or other.arrived
        if told is None or other.scheduled_s is None or not since_s < other.scheduled_s <= started_s:
            continue
        decided = [choice for choice in other.choices if choice.time_s <= other.scheduled_s]
        found.append(
            Rival(
                request_id=told.request_id,
                arrival_s=told.arrival_s,
                scheduled_s=other.scheduled_s,
                prompt_tokens=told.prompt_tokens,
                priority=other.arrived.priority if other.arrived else 0,
                index_s=decided[-1].table_index_s[0] if decided else None,
                patience_s=decided[-1].patience_s if decided else None,
            )
        )
    found.sort(key=lambda rival: (rival.arrival_s <= since_s, rival.scheduled_s, rival.request_id))
    return tuple(found[:RIVALS_LIMIT])


def _orders(orders: Sequence[SettingsChanged], since_s: float, until_s: float) -> tuple[Order, ...]:
    """The settings in force at the arrival, then every change."""
    before = [order for order in orders if order.time_s <= since_s][-1:]
    during = [order for order in orders if since_s < order.time_s <= until_s]
    return tuple(
        Order(
            time_s=order.time_s,
            reason=order.reason,
            mode=order.settings.mode,
            boost_per_s=order.settings.rules.boost_per_s,
            gate_horizon_tokens=order.settings.rules.gate.horizon_tokens if order.settings.rules.gate else None,
        )
        for order in (*before, *during)
    )


def _moments(
    life: RecentLife,
    others: Sequence[RecentLife],
    snapshots: Iterable[tuple[str, Snapshot]],
    since_s: float,
    until_s: float,
) -> tuple[Moment, ...]:
    """Where the request stood in each snapshot of its engine, evenly thinned to the limit."""
    told = life.finished or life.arrived
    assert told is not None, "a life is shown when its arrival or its end is known"
    seen = [
        snapshot
        for engine_id, snapshot in snapshots
        if engine_id == life.engine_id and since_s <= snapshot.time_s <= until_s
    ]
    prompts = {arrived.request_id: arrived.prompt_tokens for other in others if (arrived := other.arrived)}
    every = max(1, math.ceil(len(seen) / MOMENTS_LIMIT))
    shown = islice(_named(seen), 0, None, every)
    return tuple(_moment(told.request_id, snapshot, named, prompts) for snapshot, named in shown)


def _named(snapshots: Sequence[Snapshot]) -> Iterator[tuple[Snapshot, Snapshot]]:
    """Each snapshot, and the last one until then that named who runs and who waits."""
    named = None
    for snapshot in snapshots:
        named = snapshot if named is None or snapshot.detailed else named
        yield snapshot, named


def _moment(request_id: str, snapshot: Snapshot, named: Snapshot, prompts: dict[str, int]) -> Moment:
    attained = next((r.attained_tokens for r in named.running_requests if r.request_id == request_id), None)
    return Moment(
        time_s=snapshot.time_s,
        waiting=snapshot.waiting,
        running=snapshot.running,
        kv_blocks_used=snapshot.kv_blocks_used,
        kv_blocks=snapshot.kv_blocks,
        admission_limit=snapshot.admission_limit,
        reserved_blocks=snapshot.reserved_blocks,
        mode=snapshot.mode,
        fallback=snapshot.fallback,
        ahead=named.queue.index(request_id) if request_id in named.queue else None,
        head_prompt_tokens=prompts.get(named.queue[0]) if named.queue else None,
        attained_tokens=attained,
    )
