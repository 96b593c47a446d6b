"""Predicts requests when they arrive, those together that wait together, or later if arrivals are too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from controller.core.deferred_work import DeferredArrival
from controller.core.prediction_records import NewRequest
from controller.core.publisher import Publisher
from controller.core.sessions import Arrival, Session, by_model
from controller.core.state import CoreState
from store.records import Arrived, Fact

MOST_TOGETHER = 32
"""Requests that are predicted together at most; they take as long as about ten of them one by one."""


class Arrivals:
    """Makes the first prediction of each request and sends its table.

    Requests whose prediction fails are tried once more, each alone, so that one costs no other its table.
    """

    def __init__(self, state: CoreState, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._waiting: dict[tuple[str, str], Arrival] = {}
        self._failed: deque[tuple[Arrival, bool]] = deque()
        self.alone: Session | None = None
        """The engine whose request is predicted alone; after an exception, the one whose request raised it."""
        self.overloaded = False
        """True while messages wait for too long; arrivals are deferred then, if work can be deferred at all."""

    @property
    def deferred(self) -> int:
        """Number of deferred arrivals."""
        return self._state.deferred.arrivals

    @property
    def failed(self) -> int:
        """Number of requests whose prediction failed together with others, and which `predict_waiting` tries alone."""
        return len(self._failed)

    def must_precede(self, session: Session, fact: Fact) -> bool:
        """Whether the requests that wait must be predicted before a fact is handled.

        They must if the fact is about one of them, if they are many, or if they failed together; and where nothing is
        deferred, as in virtual time: there facts are handled in their very order.
        """
        if self._failed or len(self._waiting) >= MOST_TOGETHER:
            return True
        if not self._state.deferred.capacity and not isinstance(fact, Arrived):
            return True
        return (session.hello.session_id, fact.request_id) in self._waiting

    def predict_waiting(self, now_s: float) -> None:
        """Predict the requests that wait. If that raises, call it again for the others."""
        while self._failed:
            arrival, late = self._failed.popleft()
            self._predict_alone(arrival, now_s, late=late)
        waiting, self._waiting = list(self._waiting.values()), {}
        self._predict_together(waiting, now_s)

    def handle(self, session: Session, arrived: Arrived, now_s: float) -> None:
        """Let a request wait to be predicted, or defer it; send the table of a known request again."""
        state = self._state
        known = session.requests.get(arrived.request_id)
        if known is not None:
            state.predictor.advance(session, known, arrived.attained_tokens)
            self._publisher.publish(session, known, "resent", now_s)
        elif len(session.requests) + len(self._waiting) + state.deferred.arrivals >= state.config.max_unfinished:
            state.counts.not_tracked += 1
        elif self.overloaded and state.deferred.capacity:
            state.counts.deferred += 1
            state.deferred.defer(DeferredArrival(session.hello.session_id, arrived))
        else:
            state.deferred.withdraw(session.hello.session_id, arrived.request_id)
            self._waiting[session.hello.session_id, arrived.request_id] = session, arrived

    def catch_up(self, deferred: Sequence[DeferredArrival], now_s: float) -> None:
        """Predict deferred requests whose engines are connected; one that reconnects sends its arrivals again."""
        sessions = {session.hello.session_id: session for session in self._state.sessions.connected()}
        known = [arrival for arrival in deferred if arrival.session_id in sessions]
        self._state.counts.not_predicted += len(deferred) - len(known)
        self._predict_together([(sessions[arrival.session_id], arrival.arrived) for arrival in known], now_s, late=True)

    def withdraw(self, session: Session, request_id: str) -> None:
        """Drop a deferred arrival, because its request has ended."""
        self._state.counts.not_predicted += self._state.deferred.withdraw(session.hello.session_id, request_id)

    def withdraw_all(self, session: Session | None = None) -> None:
        """Drop the deferred arrivals of an engine that is gone, or all of them at the end."""
        session_id = session.hello.session_id if session else None
        self._state.counts.not_predicted += self._state.deferred.withdraw_all(session_id)

    def _predict_together(self, arrivals: Sequence[Arrival], now_s: float, *, late: bool = False) -> None:
        if len(arrivals) == 1:
            self._predict_alone(arrivals[0], now_s, late=late)
            return
        assert not self._failed, "those that failed are tried first"
        groups = by_model(arrivals)
        self._failed.extend((arrival, late) for some in groups for arrival in some)
        for some in groups:
            for arrival, new in zip(some, self._state.predictor.predict(some, now_s, late=late), strict=True):
                self._enter(arrival, new, now_s)
                self._failed.popleft()

    def _predict_alone(self, arrival: Arrival, now_s: float, *, late: bool) -> None:
        self.alone = arrival[0]
        (new,) = self._state.predictor.predict([arrival], now_s, late=late)
        self._enter(arrival, new, now_s)
        self.alone = None

    def _enter(self, arrival: Arrival, new: NewRequest, now_s: float) -> None:
        state, (session, arrived) = self._state, arrival
        state.predictor.enter(session, new)
        session.requests[arrived.request_id] = new.request
        state.counts.predictions += 1
        state.journal.record(session, new.record)
        self._publisher.publish(session, new.request, "resent" if arrived.resent else "arrival", now_s)
