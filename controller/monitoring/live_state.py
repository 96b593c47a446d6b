"""The live state of the controller: snapshots for readers in other threads.

The control loop owns the core, and no other thread may access it. It periodically publishes a `LiveSnapshot`, of which
only the state of single requests changes (`RequestViews`); readers compute derived values (quantiles, ranks) from the
latest one in their own threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Literal, overload

import msgspec

from controller.core.core import Core
from controller.core.sessions import ServedRequest, Session
from controller.policy.policy import EngineFacts
from controller.policy.service_levels import NO_PROMISE, Promise
from online_learning.calibration.calibration import Judgement, Measurement
from online_learning.calibration.scoring import Calibration, RollingScores
from online_learning.distribution import LengthDistribution
from store.entries import DriftDetected, Outcome
from store.history.writer import WriterStats
from store.http_api import DegradedState
from store.http_now import Event
from store.records import Arrived, Finished, Hello, IndexTable, Settings, Snapshot

REQUESTS_SHOWN = 5000
"""Largest number of unfinished requests of one engine in a live snapshot."""
SCORES_KEPT = 1000
DRIFTS_KEPT = 50
CLUSTERS_COUNTED = 100_000
LOST_SHOWN_S = 3600.0
"""Time for which an engine that was lost is still shown, unless one of its name comes back."""
LOST_SHOWN = 256
"""Largest number of them."""


class RequestView(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One unfinished request when it was looked at; prediction and table never change."""

    arrived: Arrived
    predicted: LengthDistribution
    table: IndexTable
    cluster: int | None
    attained_tokens: int
    cost_s: float = 0.0
    cached_tokens: int = 0
    """Prompt tokens in the engine's prefix cache, found or expected."""
    promise: Promise = NO_PROMISE

    @classmethod
    def of(cls, request: ServedRequest) -> RequestView:
        """The request as it is now."""
        return cls(
            request.arrived,
            request.predicted,
            request.table,
            request.forecast.cluster,
            request.attained_tokens,
            request.cost_s,
            request.cached_tokens,
            request.promise,
        )

    @property
    def index_s(self) -> float:
        """The index at the attained tokens."""
        return self.table.index_s[self.table.entry(self.attained_tokens)]


class RequestViews(Sequence[RequestView]):
    """The unfinished requests of an engine at the time of a live snapshot, each as it is when it is read.

    The control loop goes on meanwhile: what it learns of a request after the snapshot is seen. Few snapshots are read, and
    to copy every request for each of them took a sixth of the loop's time at 64 engines.
    """

    __slots__ = ("_requests",)

    def __init__(self, requests: Iterable[ServedRequest]) -> None:
        self._requests = tuple(requests)

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, place: int) -> RequestView: ...
    @overload
    def __getitem__(self, place: slice) -> RequestViews: ...
    def __getitem__(self, place: int | slice) -> RequestView | RequestViews:
        if isinstance(place, slice):
            return RequestViews(self._requests[place])
        return RequestView.of(self._requests[place])

    def __iter__(self) -> Iterator[RequestView]:
        return map(RequestView.of, self._requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """One engine at the time of a live snapshot."""

    hello: Hello
    connected: bool
    gone: Literal["left", "lost"] | None = None
    """How an engine that is not connected went: it said so, or its connection broke."""
    last_seen_s: float
    unfinished: int
    tables_sent: int
    clock_s: float
    """The engine's time at that of the live snapshot."""
    snapshot: Snapshot | None
    detailed: Snapshot | None
    """The last snapshot that named the requests."""
    requests: Sequence[RequestView]
    engine: EngineFacts
    """Its sizes and step times by now; ``base_s`` is a step's constant part where that is learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSnapshot:
    """The live state of the controller at one time."""

    time_s: float
    settings: Settings
    policy: str
    counts: Mapping[str, int]
    quality: Calibration | None
    """Scores of recent predictions; None before the first answer."""
    clusters: int
    """Number of prompt clusters with answers, over all models."""
    calibration: tuple[Measurement, ...]
    """The last measurement of each model and of each cluster that is not trusted."""
    drifts: tuple[DriftDetected, ...]
    """The latest drifts, oldest first."""
    engines: tuple[EngineView, ...]
    store: WriterStats
    loop: Mapping[str, float]
    degraded: tuple[DegradedState, ...] = ()
    """What is amiss at present."""
    events: tuple[Event, ...] = ()
    """What happened lately, the latest first."""


class Live:
    """The latest live snapshot; the control loop writes it, any thread may read it."""

    def __init__(self) -> None:
        self.live_snapshot: LiveSnapshot | None = None
        self._scores = RollingScores(SCORES_KEPT)
        self._drifts: deque[DriftDetected] = deque(maxlen=DRIFTS_KEPT)
        self._clusters: set[tuple[str, int]] = set()
        self._lost: dict[str, EngineView] = {}

    def watch(self, core: Core) -> None:
        """Observe the requests that end in the core and the scores of their predictions."""
        core.completions.on_finished = self._record_finished
        core.completions.on_judged = self._record_judgement

    def record_drift(self, drift: DriftDetected) -> None:
        """Add a drift; for the control loop's thread."""
        self._drifts.append(drift)

    def publish(
        self,
        core: Core,
        *,
        store: WriterStats,
        loop: Mapping[str, float],
        now_s: float,
        degraded: Iterable[DegradedState] = (),
        events: tuple[Event, ...] = (),
    ) -> None:
        """Publish a new snapshot of the core."""
        self.live_snapshot = LiveSnapshot(
            time_s=now_s,
            settings=core.settings,
            policy=core.policy_name,
            counts=asdict(core.counts),
            quality=self._scores.summary(),
            clusters=len(self._clusters),
            calibration=core.calibration.latest(),
            drifts=tuple(self._drifts),
            engines=self._engines(core, now_s),
            store=store,
            loop=loop,
            degraded=tuple(degraded),
            events=events,
        )

    def _engines(self, core: Core, now_s: float) -> tuple[EngineView, ...]:
        """The engines that the core knows, and those that it has forgotten since they were lost.

        Of one that is back under its name the session before is not shown.
        """
        sessions = core.sessions
        back = {session.hello.engine_id for session in sessions if session.connected}
        known = tuple(
            _engine_view(session, now_s)
            for session in sessions
            if session.connected or session.hello.engine_id not in back
        )
        names = {view.hello.engine_id for view in known}
        for view in self.live_snapshot.engines if self.live_snapshot else ():
            name = view.hello.engine_id
            if view.gone == "lost" and name not in names and len(self._lost) < LOST_SHOWN:
                self._lost.setdefault(name, replace(view, requests=(), detailed=None, unfinished=0))
        self._lost = {
            name: view
            for name, view in self._lost.items()
            if name not in names and now_s - view.last_seen_s < LOST_SHOWN_S
        }
        return (*known, *self._lost.values())

    def _record_judgement(self, judgement: Judgement) -> None:
        self._scores.add(judgement.served)

    def _record_finished(
        self, session: Session, request: ServedRequest | None, _finished: Finished, _outcome: Outcome | None
    ) -> None:
        if request is not None and request.forecast.cluster is not None and len(self._clusters) < CLUSTERS_COUNTED:
            self._clusters.add((session.hello.model, request.forecast.cluster))


def _engine_view(session: Session, now_s: float) -> EngineView:
    model = session.tuning.prices.model
    return EngineView(
        hello=session.hello,
        connected=session.connected,
        gone=session.gone,
        last_seen_s=session.last_seen_s,
        unfinished=len(session.requests),
        tables_sent=session.tables_sent,
        clock_s=now_s - session.clock.s,
        snapshot=session.snapshot,
        detailed=session.detailed,
        engine=session.engine if model is None else replace(session.engine, base_s=model.base_s),
        requests=RequestViews(islice(session.requests.values(), REQUESTS_SHOWN)),
    )
