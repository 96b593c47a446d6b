"""Sends index tables and settings to engines, and predicts requests again whose predictions are out of date."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from controller.core.deferred_work import StalePrediction
from controller.core.journal import DecisionReason
from controller.core.sessions import ServedRequest, Session, by_model
from controller.core.state import CoreState
from online_learning.experts.cluster import CLUSTER_SKETCH
from store.entries import SettingsChanged

SETTLED_ANSWERS = int(CLUSTER_SKETCH.memory_answers)
"""Answers of a model after which a prediction is not made again because there are more of them."""


class Publisher:
    """Sends and records the table of each request and the settings of each engine."""

    def __init__(self, state: CoreState) -> None:
        self._state = state

    def publish(self, session: Session, request: ServedRequest, reason: DecisionReason, now_s: float) -> None:
        """Send the table of a request."""
        session.tables_sent += 1
        self._state.counts.tables_sent += 1
        self._state.journal.decided(session, request, self._state.policy.name, reason, now_s)
        self._state.outbox.send(session.connection, request.table)

    def publish_prior(self, session: Session) -> None:
        """Send the table of requests that have none of their own yet."""
        if self._state.policy.orders:
            session.prior_taught = self._state.predictor.taught(session.hello.model)
            self._state.outbox.send(session.connection, self._state.predictor.prior(session))

    def publish_settings(self, session: Session, reason: str, now_s: float) -> None:
        """Send an engine's settings, and record why they changed."""
        settings = self._state.modes.of_engine(session)
        self._state.journal.record(session, SettingsChanged(time_s=now_s, settings=settings, reason=reason))
        self._state.outbox.send(session.connection, settings)

    def refresh(self, session: Session, now_s: float) -> None:
        """Predict again the requests for which the learner has seen twice as many answers as at their prediction.

        Not those whose prediction rests on as many as a prompt cluster remembers: more answers do not tell more, and of a
        queue that is served shortest first the latest are short ones.
        """
        taught = self._state.predictor.taught(session.hello.model)
        stale = [
            request
            for request in session.requests.values()
            if taught >= 2 * request.taught + 20 and request.taught < SETTLED_ANSWERS
        ]
        self.renew(session, stale[: self._state.config.refresh_requests], now_s)
        if taught >= 1.2 * session.prior_taught + 20:
            self.publish_prior(session)

    def affected(self, model: str, cluster: int | None) -> list[tuple[Session, list[ServedRequest]]]:
        """Unfinished requests of a cluster on the connected engines of a model."""
        cluster_of = self._state.predictor.cluster_of
        return [
            (session, [request for request in session.requests.values() if cluster_of(request) == cluster])
            for session in self._state.sessions.connected(model)
        ]

    def renew_all(self, affected: list[tuple[Session, list[ServedRequest]]], now_s: float) -> None:
        """Predict requests of several engines again."""
        for session, requests in affected:
            self.renew(session, requests, now_s)

    def renew(self, session: Session, requests: Iterable[ServedRequest], now_s: float) -> None:
        """Predict requests again, now or when there is time; those beyond the bound keep their predictions."""
        deferred = self._state.deferred
        if not deferred.capacity:
            self._predict_again([(session, request) for request in requests], now_s)
            return
        for request in requests:
            if deferred.has_room:
                deferred.put(StalePrediction(session.connection, request))
            else:
                self._state.counts.not_renewed += 1

    def catch_up(self, stale: Sequence[StalePrediction], now_s: float) -> None:
        """Predict those requests again that are still unfinished."""
        found = [(self._state.sessions.of(item.connection), item.request) for item in stale]
        unfinished = [
            (session, request)
            for session, request in found
            if session is not None and session.requests.get(request.arrived.request_id) is request
        ]
        self._predict_again(unfinished, now_s)

    def _predict_again(self, stale: Sequence[tuple[Session, ServedRequest]], now_s: float) -> None:
        for some in by_model(stale):
            self._state.predictor.renew(some)
            for session, request in some:
                self.publish(session, request, "prediction", now_s)
