"""Predicts requests when they arrive, or later if arrivals are too many."""

from __future__ import annotations

from controller.core.deferred_work import DeferredArrival
from controller.core.publisher import Publisher
from controller.core.sessions import Session
from controller.core.state import CoreState
from store.records import Arrived


class Arrivals:
    """Makes the first prediction of each request and sends its table."""

    def __init__(self, state: CoreState, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self.overloaded = False
        """True while messages wait for too long; arrivals are deferred then, if work can be deferred at all."""

    @property
    def deferred(self) -> int:
        """Number of deferred arrivals."""
        return self._state.deferred.arrivals

    def handle(self, session: Session, arrived: Arrived, now_s: float) -> None:
        """Predict a request now or defer it; send the table of a known request again."""
        state = self._state
        known = session.requests.get(arrived.request_id)
        if known is not None:
            state.predictor.advance(session, known, arrived.attained_tokens)
            self._publisher.publish(session, known, "resent", now_s)
        elif len(session.requests) + state.deferred.arrivals >= state.config.max_unfinished:
            state.counts.not_tracked += 1
        elif self.overloaded and state.deferred.capacity:
            state.counts.deferred += 1
            state.deferred.defer(DeferredArrival(session.hello.session_id, arrived))
        else:
            state.deferred.withdraw(session.hello.session_id, arrived.request_id)
            self._predict(session, arrived, now_s)

    def catch_up(self, arrival: DeferredArrival, now_s: float) -> None:
        """Predict a deferred request if its engine is connected; one that reconnects sends its arrivals again."""
        for session in self._state.sessions.named(arrival.session_id):
            if session.connected:
                self._predict(session, arrival.arrived, now_s, late=True)
                return
        self._state.counts.not_predicted += 1

    def withdraw(self, session: Session, request_id: str) -> None:
        """Drop a deferred arrival, because its request has ended."""
        self._state.counts.not_predicted += self._state.deferred.withdraw(session.hello.session_id, request_id)

    def withdraw_all(self, session: Session | None = None) -> None:
        """Drop the deferred arrivals of an engine that is gone, or all of them at the end."""
        session_id = session.hello.session_id if session else None
        self._state.counts.not_predicted += self._state.deferred.withdraw_all(session_id)

    def _predict(self, session: Session, arrived: Arrived, now_s: float, *, late: bool = False) -> None:
        state = self._state
        request, prediction = state.predictor.predict(session, arrived, now_s, late=late)
        session.requests[arrived.request_id] = request
        state.counts.predictions += 1
        state.journal.record(session, prediction)
        self._publisher.publish(session, request, "resent" if arrived.resent else "arrival", now_s)
