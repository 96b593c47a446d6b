"""What the brain writes down for the history, in order, until the loop takes it away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from controller.core.sessions import ServedRequest, Session
from online_learning.length_learner import ClusterChange, Drift
from store.entries import ClusterChanged, Decision, DriftDetected, Entry, StoreRecord
from store.records import Fact

DecisionReason: TypeAlias = Literal["arrival", "resent", "belief"]


class Journal:
    """Entries of all engines, each under its engine and session."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._unrecorded: list[Entry] = []
        self._repeated: list[Entry] = []

    def drain(self) -> list[Entry]:
        """What was written since the last call."""
        entries, self._entries = self._entries, []
        return entries

    def drain_unrecorded(self) -> list[Entry]:
        """Facts that happened and that the history is to get later."""
        entries, self._unrecorded = self._unrecorded, []
        return entries

    def drain_repeated(self) -> list[Entry]:
        """Facts that were handled before and that the history gets now, before all others of their engines."""
        entries, self._repeated = self._repeated, []
        return entries

    def record(self, session: Session, record: StoreRecord, batch: int | None = None) -> None:
        """Write down what concerns an engine; ``batch`` where it came in one."""
        self._entries.append(_entry(session, record, batch))

    def leave_out(self, session: Session, fact: Fact, batch: int) -> None:
        """Write down a fact of which the history can take no note now."""
        self._unrecorded.append(_entry(session, fact, batch))

    def repeat(self, session: Session, fact: Fact, batch: int) -> None:
        """Write down a fact for the history alone, which was left out of it at first."""
        self._repeated.append(_entry(session, fact, batch))

    def note(self, record: StoreRecord) -> None:
        """Write down what concerns no single engine."""
        self._entries.append(Entry(engine_id="", session_id="", batch=None, record=record))

    def decided(
        self, session: Session, request: ServedRequest, policy: str, reason: DecisionReason, now_s: float
    ) -> None:
        """A request's table is published."""
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
            patience_s=table.patience_s,
        )
        self.record(session, decision)

    def drifted(self, session: Session, drift: Drift, renewed_requests: int, now_s: float) -> None:
        """Lengths moved, upon which the beliefs of so many unfinished requests are formed anew."""
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
        """An answer of the engine made prompt clusters come or go."""
        for change in changes:
            told = ClusterChanged(time_s=now_s, kind=change.kind, cluster=change.cluster, other_cluster=change.other)
            self.record(session, told)


def _entry(session: Session, record: StoreRecord, batch: int | None) -> Entry:
    hello = session.hello
    return Entry(engine_id=hello.engine_id, session_id=hello.session_id, batch=batch, record=record)
