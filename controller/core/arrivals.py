"""What is believed of a request when it arrives, at once or when there is time."""

from __future__ import annotations

from controller.core.deferred_work import Backlog, Unseen
from controller.core.journal import Journal
from controller.core.predictor import Predictor
from controller.core.publisher import Outgoing, Publisher
from controller.core.registry import Registry
from controller.core.sessions import Session
from controller.core.settings import Counts
from store.records import Arrived


class Arrivals:
    """Forms the first belief about each request and sends its table; ``max_unfinished`` bounds them for each engine."""

    def __init__(
        self,
        *,
        sessions: Registry,
        beliefs: Predictor,
        publisher: Publisher,
        journal: Journal,
        backlog: Backlog,
        counts: Counts,
        max_unfinished: int,
    ) -> None:
        self._sessions = sessions
        self._predictor = beliefs
        self._publisher = publisher
        self._journal = journal
        self._backlog = backlog
        self._counts = counts
        self._max_unfinished = max_unfinished
        self.overloaded = False
        """True while messages wait for too long: arrivals are put off then, if there is a backlog to put them in."""

    @property
    def waiting(self) -> int:
        """Arrivals that were put off."""
        return self._backlog.unseen

    def take(self, session: Session, arrived: Arrived, now_s: float) -> Outgoing:
        """Form a belief about a request, now or when there is time; send that of a known one again."""
        known = session.requests.get(arrived.request_id)
        if known is not None:
            self._predictor.advance(session, known, arrived.attained_tokens)
            return self._publisher.publish(session, known, "resent", now_s)
        if len(session.requests) + self._backlog.unseen >= self._max_unfinished:
            self._counts.not_tracked += 1
            return []
        if self.overloaded and self._backlog.room:
            self._counts.put_off += 1
            self._backlog.put_off(Unseen(session.hello.session_id, arrived))
            return []
        self._backlog.withdraw(session.hello.session_id, arrived.request_id)
        return self._see(session, arrived, now_s)

    def catch_up(self, unseen: Unseen, now_s: float) -> Outgoing:
        """Form the belief that there was no time for before; an engine that comes back tells its arrivals again."""
        for session in self._sessions.named(unseen.session_id):
            if session.connected:
                return self._see(session, unseen.arrived, now_s, late=True)
        self._counts.not_predicted += 1
        return []

    def ended(self, session: Session, request_id: str) -> None:
        """Wait with a request no longer, because it has ended."""
        self._counts.not_predicted += self._backlog.withdraw(session.hello.session_id, request_id)

    def leave(self, session: Session | None = None) -> None:
        """Put nothing off any longer, for an engine that is gone, or at the end for all."""
        self._counts.not_predicted += self._backlog.withdraw_all(session.hello.session_id if session else None)

    def _see(self, session: Session, arrived: Arrived, now_s: float, *, late: bool = False) -> Outgoing:
        request, prediction = self._predictor.form(session, arrived, now_s, late=late)
        session.requests[arrived.request_id] = request
        self._counts.predictions += 1
        self._journal.record(session, prediction)
        return self._publisher.publish(session, request, "resent" if arrived.resent else "arrival", now_s)
