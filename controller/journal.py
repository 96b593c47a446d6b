"""What the brain writes down for the history, in order, until the loop takes it away."""

from __future__ import annotations

from typing import Literal, TypeAlias

from controller.sessions import ServedRequest, Session
from online_learning.prompt import Drift
from store.records import Decision, DriftDetected, Entry, StoreRecord

DecisionReason: TypeAlias = Literal["arrival", "resent", "belief"]


class Journal:
    """Entries of all engines, each under its engine and session."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def drain(self) -> list[Entry]:
        """What was written since the last call."""
        entries, self._entries = self._entries, []
        return entries

    def record(self, session: Session, record: StoreRecord, batch: int | None = None) -> None:
        """Write down what concerns an engine; ``batch`` where it came in one."""
        hello = session.hello
        self._entries.append(Entry(engine_id=hello.engine_id, session_id=hello.session_id, batch=batch, record=record))

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
