"""Entries for the history, in order, until the control loop drains them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from controller.core.sessions import ServedRequest, Session
from controller.policy.service_levels import Promise
from online_learning.length_learner import ClusterChange, Drift
from store.entries import ClusterChanged, Decision, DriftDetected, Entry, Promised, StoreRecord
from store.records import Arrived, Fact

DecisionReason: TypeAlias = Literal["arrival", "resent", "prediction"]


class Journal:
    """Queues of entries, each with its engine and session."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._unrecorded: list[Entry] = []
        self._repeated: list[Entry] = []

    def drain(self) -> list[Entry]:
        """Return the entries since the last call."""
        entries, self._entries = self._entries, []
        return entries

    def drain_unrecorded(self) -> list[Entry]:
        """Return the facts since the last call that were handled while the history was too far behind to record them."""
        entries, self._unrecorded = self._unrecorded, []
        return entries

    def drain_repeated(self) -> list[Entry]:
        """Return the facts since the last call that were handled before and are recorded now, before all others."""
        entries, self._repeated = self._repeated, []
        return entries

    def record(self, session: Session, record: StoreRecord, batch: int | None = None) -> None:
        """Add an entry about an engine; ``batch`` is the number of the batch that it came in."""
        self._entries.append(_entry(session, record, batch))

    def leave_out(self, session: Session, fact: Fact, batch: int) -> None:
        """Add a fact that the history cannot record now."""
        self._unrecorded.append(_entry(session, fact, batch))

    def repeat(self, session: Session, fact: Fact, batch: int) -> None:
        """Add a fact that was handled before and left out of the history."""
        self._repeated.append(_entry(session, fact, batch))

    def record_global(self, record: StoreRecord) -> None:
        """Add an entry that is about no single engine."""
        self._entries.append(Entry(engine_id="", session_id="", batch=None, record=record))

    def decided(
        self, session: Session, request: ServedRequest, policy: str, reason: DecisionReason, now_s: float
    ) -> None:
        """Add the decision behind a table that is sent."""
        table = request.table
        decision = Decision(
            request_id=request.arrived.request_id,
            time_s=now_s,
            policy=policy,
            reason=reason,
            cost_s=request.cost_s,
            index_s=request.index_s,
            attained_tokens=table.attained_tokens,
            table_index_s=table.index_s,
            growth_tokens=table.growth_tokens,
        )
        self.record(session, decision)

    def promised(self, session: Session, arrived: Arrived, promise: Promise) -> None:
        """Add what is promised to a request."""
        promised = Promised(
            request_id=arrived.request_id,
            time_s=arrived.arrival_s,
            service_class=promise.service_class,
            targets=promise.targets,
            account=promise.account,
            weight=None if promise.account is None else promise.weight,
            objective=promise.objective,
        )
        self.record(session, promised)

    def drifted(self, session: Session, drift: Drift, renewed_requests: int, now_s: float) -> None:
        """Add a drift and the number of unfinished requests that are predicted again because of it."""
        event = DriftDetected(
            time_s=now_s,
            model=drift.model,
            cluster=drift.cluster,
            before_mean_tokens=drift.before_mean_tokens,
            after_mean_tokens=drift.after_mean_tokens,
            forgotten=drift.forgotten,
            renewed_requests=renewed_requests,
        )
        self.record(session, event)

    def clusters_changed(self, session: Session, changes: Iterable[ClusterChange], now_s: float) -> None:
        """Add the changes of prompt clusters that an answer of the engine caused."""
        for change in changes:
            record = ClusterChanged(time_s=now_s, kind=change.kind, cluster=change.cluster, other_cluster=change.other)
            self.record(session, record)


def _entry(session: Session, record: StoreRecord, batch: int | None) -> Entry:
    hello = session.hello
    return Entry(engine_id=hello.engine_id, session_id=hello.session_id, batch=batch, record=record)
