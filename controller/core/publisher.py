"""Which index tables and settings go to which engine, and when the beliefs behind a table are formed anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from controller.core.deferred_work import Backlog, Stale
from controller.core.journal import DecisionReason, Journal
from controller.core.modes import Modes
from controller.core.predictor import Predictor
from controller.core.registry import Registry
from controller.core.sessions import ServedRequest, Session
from controller.core.settings import Counts
from controller.policy.policy import Policy
from store.entries import SettingsChanged
from store.records import ControllerMessage

Outgoing: TypeAlias = list[tuple[bytes, ControllerMessage]]


class Publisher:
    """Sends what is believed of a request as a table, and what an engine is to do as settings; records both."""

    def __init__(
        self,
        *,
        sessions: Registry,
        beliefs: Predictor,
        policy: Policy,
        modes: Modes,
        journal: Journal,
        backlog: Backlog,
        counts: Counts,
    ) -> None:
        self._sessions = sessions
        self._predictor = beliefs
        self._policy = policy
        self._modes = modes
        self._journal = journal
        self._backlog = backlog
        self._counts = counts

    def publish(self, session: Session, request: ServedRequest, reason: DecisionReason, now_s: float) -> Outgoing:
        """The table of a request."""
        session.tables_sent += 1
        self._counts.tables_sent += 1
        self._journal.decided(session, request, self._policy.name, reason, now_s)
        return [(session.connection, request.table)]

    def publish_prior(self, session: Session) -> Outgoing:
        """The table of requests that have none of their own yet."""
        if not self._policy.orders:
            return []
        session.prior_taught = self._predictor.taught(session.hello.model)
        return [(session.connection, self._predictor.prior(session))]

    def publish_settings(self, session: Session, reason: str, now_s: float) -> Outgoing:
        """An engine's settings, recorded with why they changed."""
        settings = self._modes.of_engine(session)
        self._journal.record(session, SettingsChanged(time_s=now_s, settings=settings, reason=reason))
        return [(session.connection, settings)]

    def refresh(self, session: Session, most: int, now_s: float) -> Outgoing:
        """Form anew what was believed when the learner knew less than half of what it knows now."""
        taught = self._predictor.taught(session.hello.model)
        stale = [request for request in session.requests.values() if taught >= 2 * request.taught + 20]
        outgoing = self.renew(session, stale[:most], now_s)
        if taught >= 1.2 * session.prior_taught + 20:
            outgoing.extend(self.publish_prior(session))
        return outgoing

    def concerned(self, model: str, cluster: int | None) -> list[tuple[Session, list[ServedRequest]]]:
        """Unfinished requests of a cluster on the connected engines of a model."""
        return [
            (
                session,
                [request for request in session.requests.values() if self._predictor.cluster_of(request) == cluster],
            )
            for session in self._sessions.connected(model)
        ]

    def renew_all(self, concerned: list[tuple[Session, list[ServedRequest]]], now_s: float) -> Outgoing:
        """Form beliefs anew on several engines."""
        return [out for session, requests in concerned for out in self.renew(session, requests, now_s)]

    def renew(self, session: Session, requests: Iterable[ServedRequest], now_s: float) -> Outgoing:
        """Form beliefs anew, now or when there is time; those that it will never be for stay as they are."""
        outgoing: Outgoing = []
        for request in requests:
            if not self._backlog.room:
                outgoing.extend(self._form_anew(session, request, now_s))
            elif self._backlog.takes():
                self._backlog.put(Stale(session.connection, request))
            else:
                self._counts.not_renewed += 1
        return outgoing

    def catch_up(self, stale: Stale, now_s: float) -> Outgoing:
        """Form a belief anew for which there was no time before, if its request is still unfinished."""
        session = self._sessions.of(stale.connection)
        if session is None or session.requests.get(stale.request.arrived.request_id) is not stale.request:
            return []
        return self._form_anew(session, stale.request, now_s)

    def _form_anew(self, session: Session, request: ServedRequest, now_s: float) -> Outgoing:
        self._predictor.renew(session, request)
        return self.publish(session, request, "belief", now_s)
