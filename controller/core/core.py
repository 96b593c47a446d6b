"""The scheduling core of a controller: messages of engines in, messages to engines and history entries out.

`Core` has no effects: no socket, file, thread, log or clock. The control loop, the benchmark in virtual time and the
tests run the same code.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

from controller.core.arrivals import MOST_TOGETHER, Arrivals
from controller.core.completions import Completions
from controller.core.deferred_work import DeferredWork, EndedRequest
from controller.core.engine_tuning import EngineTuning
from controller.core.modes import Modes
from controller.core.outbox import Outgoing
from controller.core.past import Past
from controller.core.pause import Pause, PauseLimits
from controller.core.prediction_records import calibration_record
from controller.core.predictor import EnginePrediction, Predictor
from controller.core.publisher import Publisher
from controller.core.sessions import Session, Sessions
from controller.core.settings import CoreConfig, Counts
from controller.core.state import CoreState
from controller.policy.policy import Policy
from controller.policy.service_levels import NO_PROMISE
from online_learning.calibration.calibration import CalibrationBook
from online_learning.experts.semantic import Embedding
from online_learning.length_learner import Drift, Features, LengthLearner, Observation
from store.entries import EngineSeen, Entry, ModeSwitched, SettingsChanged
from store.http_routing import LengthForecast
from store.records import (
    Acknowledged,
    Arrived,
    EngineMessage,
    Fact,
    Facts,
    Finished,
    FirstToken,
    Goodbye,
    Heartbeat,
    Hello,
    Mode,
    Preempted,
    Settings,
    Snapshot,
    Welcome,
)

__all__ = ["Core", "CoreConfig", "Counts"]


class Core:
    """Predicts, decides and records for all engines of one controller.

    ``timer`` measures the time of a prediction (``time.perf_counter`` live); it influences no decision.
    ``durable_batches`` is the last batch that the history holds of each session.
    Messages and entries wait in queues for `drain_messages`, `drain_entries`, `drain_unrecorded` and `drain_repeated`.
    """

    def __init__(
        self,
        *,
        learner: LengthLearner,
        policy: Policy,
        config: CoreConfig,
        now_s: float,
        timer: Callable[[], float],
        durable_batches: dict[str, int] | None = None,
    ) -> None:
        predictor = Predictor(
            learner=learner,
            policy=policy,
            hash_key=config.hash_key,
            timer=timer,
            calibration=config.calibration,
            levels=config.service,
        )
        self._state = state = CoreState(
            policy=policy,
            config=config,
            predictor=predictor,
            sessions=Sessions(config.max_sessions),
            modes=Modes(policy, config.mode, config.lease_s, fair=config.service.tenants.fair),
            deferred=DeferredWork(config.backlog),
        )
        self._publisher = Publisher(state)
        self.arrivals = Arrivals(state, self._publisher)
        """The control loop sets `Arrivals.overloaded` while messages wait for too long."""
        self.completions = Completions(state, self._publisher)
        """Readers of the live state set `Completions.on_judged` and `Completions.on_finished`."""
        self.past = Past(state)
        self.recording = True
        """False while the history is so far behind that engines keep their facts."""
        self._durable_batches = dict(durable_batches or {})
        self._unhandled: deque[tuple[Session, Fact]] = deque()
        self._concerned: Session | None = None
        """The session whose message or work is being done; after an exception, the one that raised it."""
        self._next_tick_s = now_s
        self._next_calibration_s = now_s
        state.journal.record_global(SettingsChanged(time_s=now_s, settings=self.settings, reason="start"))

    # --- queries ------------------------------------------------------------------------------------

    @property
    def sessions(self) -> list[Session]:
        """The engines, connected and lost lately; not to be changed."""
        return list(self._state.sessions)

    @property
    def counts(self) -> Counts:
        """Counts since the start; not to be changed."""
        return self._state.counts

    @property
    def settings(self) -> Settings:
        """The operator's settings, in force for all models whose predictions are trusted."""
        return self._state.modes.settings

    @property
    def calibration(self) -> CalibrationBook:
        """The latest scores of predictions, and which models and clusters are trusted; not to be changed."""
        return self._state.predictor.calibration

    def service_s(self, session_id: str, finished: Finished) -> float | None:
        """What a finished request used, in engine-seconds at its engine's present prices; None for an unknown engine."""
        return next((session.service_s(finished) for session in self._state.sessions.named(session_id)), None)

    @property
    def policy_name(self) -> str:
        """The name of the policy."""
        return self._state.policy.name

    def drain_messages(self) -> list[Outgoing]:
        """Messages to engines since the last call, in order, each with its connection."""
        return self._state.outbox.drain()

    def drain_entries(self) -> list[Entry]:
        """Entries to be recorded since the last call, in order."""
        return self._state.journal.drain()

    def drain_unrecorded(self) -> list[Entry]:
        """Facts since the last call that cannot be recorded now; engines send them again."""
        return self._state.journal.drain_unrecorded()

    def drain_repeated(self) -> list[Entry]:
        """Facts sent again since the last call, to be recorded before all others."""
        return self._state.journal.drain_repeated()

    # --- commands -----------------------------------------------------------------------------------

    def handle(self, connection: bytes, message: EngineMessage, now_s: float, *, more: bool = False) -> None:
        """Handle one message of an engine.

        With ``more`` its arrivals may wait to be predicted together with those of further messages, until `proceed`.
        """
        if isinstance(message, Hello):
            self.arrivals.predict_waiting(now_s)
            self._greet(connection, message, now_s)
            return
        self._concerned = session = self._state.sessions.of(connection)
        if session is None:
            self.counts.unknown_connections += 1
            return
        session.last_seen_s = now_s
        match message:
            case Facts():
                self._record_facts(session, message, now_s)
                self.proceed(now_s, more=more)
            case Snapshot():
                if session.has_news(message):
                    session.recorded = message
                    self._state.journal.record(session, message)
                session.clock.observe(message.time_s, now_s)
                self.completions.trust_changed(self._state.predictor.observe(session, message), now_s)
                for request in session.remove_missing(message):
                    self._state.predictor.forget(session, request)
                self._tend(session, now_s)
                self.proceed(now_s, more=more)
            case Goodbye():
                self._leave(session, "left", now_s)
        self._concerned = None

    @property
    def next_tick_s(self) -> float:
        """When `tick` has something to do."""
        return self._next_tick_s

    def tick(self, now_s: float) -> None:
        """Do what is due by the clock: send heartbeats, refresh predictions, forget engines that are gone."""
        if now_s >= self._next_tick_s:
            for session in self._state.sessions.forget_lost(now_s - self._state.config.forget_lost_s):
                self._state.predictor.abandon(session)
                self.arrivals.withdraw_all(session)
            if now_s >= self._next_calibration_s:
                self._next_calibration_s = now_s + self._state.config.calibration_interval_s
                for measurement in self.calibration.due(now_s):
                    self._state.journal.record_global(calibration_record(measurement, now_s))
            for session in self._state.sessions.connected():
                self._concerned = session
                self._tend(session, now_s)
            self._concerned = None
            self._next_tick_s = min(self._due_s())
        self.proceed(now_s)

    @property
    def backlog(self) -> int:
        """Number of items that wait for `work`."""
        return len(self._state.deferred)

    def work(self, now_s: float) -> None:
        """Do the oldest items of deferred work, which takes a few milliseconds; nothing if there are none."""
        deferred = self._state.deferred
        if arrivals := deferred.next_arrivals(MOST_TOGETHER):
            self.arrivals.catch_up(arrivals, now_s)
        elif stale := deferred.next_stale(MOST_TOGETHER):
            self._concerned = self._state.sessions.of(stale[0].connection)
            self._publisher.catch_up(stale, now_s)
        elif ended := deferred.next_ended():
            self._concerned = ended.session
            self.completions.learn(ended, now_s)
        self._concerned = None

    @property
    def unhandled(self) -> int:
        """Number of recorded facts that are not handled yet, because one raised."""
        return len(self._unhandled) + self.arrivals.failed

    def proceed(self, now_s: float, *, more: bool = False) -> None:
        """Handle the received facts in order, and predict the requests that have arrived, unless there is ``more`` to come.

        If one raises, call it again for the others.
        """
        while self._unhandled:
            if self.arrivals.must_precede(*self._unhandled[0]):
                self.arrivals.predict_waiting(now_s)
            session, fact = self._unhandled.popleft()
            self._concerned = session
            self._handle_fact(session, fact, now_s)
        self._concerned = None
        if not more or self.arrivals.failed:
            self.arrivals.predict_waiting(now_s)

    def charge_engine(self, error: Exception, limits: PauseLimits, now_s: float) -> bool:
        """Let the engine whose message or work raised serve first come, first served for a while; False if it was none's.

        Of requests that failed together nobody's is at fault yet: each is tried alone.
        """
        alone, self.arrivals.alone = self.arrivals.alone, None
        concerned, self._concerned = self._concerned, None
        if alone is None and self.arrivals.failed:
            return True
        session = alone or concerned
        if session is None:
            return False
        self.counts.engine_errors += 1
        if session.trouble.extend(error, limits, now_s) and session.connected:
            self._switch_engine(session, f"failure on its messages: {session.trouble.last}", now_s)
        self._next_tick_s = now_s
        return True

    def acknowledge(self, session_id: str, batch: int) -> None:
        """Acknowledge an engine's facts up to this batch, which are durable."""
        self._durable_batches[session_id] = max(batch, self._durable_batches.get(session_id, 0))
        for session in self._state.sessions.named(session_id):
            session.durable_batch = max(session.durable_batch, batch)
            self._state.outbox.send(session.connection, Acknowledged(batch=batch))

    def lost(self, connection: bytes, now_s: float) -> None:
        """Record that the connection to an engine broke."""
        session = self._state.sessions.of(connection)
        if session is not None and session.connected:
            self._leave(session, "lost", now_s)

    def record_switch(self, switched: ModeSwitched) -> None:
        """Record who switched the mode."""
        self._state.journal.record_global(switched)

    def end_pauses(self, now_s: float) -> None:
        """Let engines that are left alone after failures follow the mode again; the next heartbeat tells them."""
        for session in self._state.sessions:
            session.trouble.end(now_s)

    def set_mode(self, mode: Mode, reason: str, now_s: float) -> None:
        """Switch all engines to a mode, and record the reason."""
        if mode == self.settings.mode:
            return
        self._state.modes.switch(mode)
        self._state.journal.record_global(SettingsChanged(time_s=now_s, settings=self.settings, reason=reason))
        for session in self._state.sessions.connected():
            self._state.outbox.send(session.connection, self._state.modes.of_engine(session))

    def predict_on(self, model: str, arrived: Arrived) -> dict[str, EnginePrediction]:
        """Predict a request on each connected engine of a model; changes nothing."""
        return self._state.predictor.predict_on(self._state.sessions.connected(model), arrived)

    def predict_length(self, model: str, arrived: Arrived) -> LengthForecast | None:
        """Predict the length of an answer, wherever it is served; None for a model that is not known. Changes nothing."""
        return self._state.predictor.predict_length(model, arrived, served=bool(self._state.sessions.connected(model)))

    def refine(self, session_id: str, request_id: str, embedding: Embedding, now_s: float) -> None:
        """Predict a request again with the embedding of its prompt; nothing if the request has ended."""
        for session in self._state.sessions.connected():
            request = session.requests.get(request_id) if session.hello.session_id == session_id else None
            if request is not None:
                prediction = self._state.predictor.refine(session, request, embedding, now_s)
                self._state.journal.record(session, prediction)
                self._publisher.publish(session, request, "prediction", now_s)
                return

    def teach(
        self, features: Features, model: str, observation: Observation, *, answer: int | None = None
    ) -> list[Drift]:
        """Teach the learner an answer, as in the rebuild from history or a benchmark's warm-up."""
        return self._state.predictor.teach(features, model, observation, answer)

    def rehearse(self, features: Features, model: str, observation: Observation, now_s: float = 0.0) -> None:
        """Score the prediction of an answer from the history before it is taught, so that the guard counts it."""
        for change in self._state.predictor.rehearse(features, model, observation):
            if change.scope.kind == "model":
                self.completions.switch_model(model, change, now_s)

    # --- connections --------------------------------------------------------------------------------

    def _greet(self, connection: bytes, hello: Hello, now_s: float) -> None:
        state = self._state
        if state.sessions.is_of_another(hello):
            self.counts.unknown_connections += 1
            return
        previous = state.sessions.drop(hello.session_id)
        if state.sessions.full:
            self.counts.unknown_connections += 1
            return
        durable = self._durable_batches.get(hello.session_id, 0)
        session = Session(
            hello=hello,
            connection=connection,
            connected=True,
            last_seen_s=now_s,
            received_batch=previous.received_batch if previous else durable,
            recorded_batch=previous.recorded_batch if previous else durable,
            durable_batch=durable,
            next_heartbeat_s=now_s,
            next_refresh_s=now_s + state.config.refresh_interval_s,
            trouble=previous.trouble if previous else Pause(),
            damaged_facts=previous.damaged_facts if previous else 0,
            tuning=previous.tuning if previous else EngineTuning(state.policy.tuning, hello.token_budget),
            requests=previous.requests if previous else {},
        )
        state.sessions.enter(session)
        self._next_tick_s = now_s
        state.journal.record(
            session, EngineSeen(time_s=now_s, event="reconnected" if previous else "connected", hello=hello)
        )
        state.outbox.send(connection, Welcome(controller_id=state.config.controller_id, durable_batch=durable))
        state.outbox.send(connection, state.modes.of_engine(session))
        self._publisher.publish_prior(session)
        self.proceed(now_s)

    def _leave(self, session: Session, event: Literal["left", "lost"], now_s: float) -> None:
        session.connected, session.gone = False, event
        session.last_seen_s = now_s
        self._next_tick_s = now_s
        self._state.journal.record(session, EngineSeen(time_s=now_s, event=event, hello=session.hello))

    def _tend(self, session: Session, now_s: float) -> None:
        """Send a heartbeat, refresh predictions and end a pause after failures, each when it is due."""
        if session.trouble.is_over(now_s):
            self._switch_engine(session, "no failure on its messages for a while", now_s)
        if now_s >= session.next_heartbeat_s:
            session.next_heartbeat_s = now_s + self._state.config.lease_s / 4
            read_s = session.snapshot.time_s if session.snapshot else None
            settings = self._state.modes.of_engine(session)
            self._state.outbox.send(session.connection, Heartbeat(time_s=now_s, read_s=read_s, settings=settings))
        if not self._state.policy.orders:
            return
        if now_s >= session.next_refresh_s:
            session.next_refresh_s = now_s + self._state.config.refresh_interval_s
            self._publisher.refresh(session, now_s)
        self._tune(session, now_s)

    def _switch_engine(self, session: Session, reason: str, now_s: float) -> None:
        self._state.modes.renumber()
        self._publisher.publish_settings(session, reason, now_s)

    def _tune(self, session: Session, now_s: float) -> None:
        """Adapt the engine's own part of the settings if its measurements ask for it."""
        reasons = session.tuning.due(now_s)
        if reasons:
            self._switch_engine(session, "; ".join(reasons), now_s)

    # --- facts --------------------------------------------------------------------------------------

    def _record_facts(self, session: Session, facts: Facts, now_s: float) -> None:
        """Record each batch once and in order, and queue its facts; a batch that comes too early is sent again."""
        journal = self._state.journal
        if facts.damaged:
            session.damaged_facts += facts.damaged
            session.damaged_s = now_s
            self.counts.damaged_facts += facts.damaged
        match session.judge(facts, recording=self.recording):
            case "known":
                self.counts.duplicate_batches += 1
                if facts.batch <= session.durable_batch:
                    self._state.outbox.send(session.connection, Acknowledged(batch=session.durable_batch))
            case "repeated":
                self.counts.duplicate_batches += 1
                _record(journal.repeat, session, facts)
            case "early":
                self.counts.early_batches += 1
            case "unrecorded":
                self.counts.unrecorded_batches += 1
                _record(journal.leave_out, session, facts)
                self._queue_up(session, facts)
            case "new":
                _record(journal.record, session, facts)
                self._queue_up(session, facts)

    def _queue_up(self, session: Session, facts: Facts) -> None:
        self._unhandled.extend((session, fact) for fact in facts.facts)
        if self._state.config.acknowledge_at_once:
            self.acknowledge(session.hello.session_id, facts.batch)

    def _handle_fact(self, session: Session, fact: Fact, now_s: float) -> None:
        match fact:
            case Arrived():
                self._promise(session, fact, now_s)
                if self._state.policy.orders:
                    self.arrivals.handle(session, fact, now_s)
            case Finished():
                self._finish(session, fact, now_s)
            case FirstToken() | Preempted():
                session.record(fact)

    def _promise(self, session: Session, arrived: Arrived, now_s: float) -> None:
        """Record what is promised to a request, if that is anything."""
        promise = self._state.config.service.promise(arrived, session.hello.model)
        if promise is not NO_PROMISE:
            self._state.journal.promised(session, arrived, promise)
        if promise.targets is not None and self._state.modes.promise(model := session.hello.model):
            for each in self._state.sessions.connected(model):
                self._publisher.publish_settings(each, f"a request for {model} has targets", now_s)

    def _finish(self, session: Session, finished: Finished, now_s: float) -> None:
        request = session.requests.pop(finished.request_id, None)
        self.arrivals.withdraw(session, finished.request_id)
        try:
            session.tuning.record(finished)
        finally:
            self.completions.handle(EndedRequest(session, request, finished), now_s)

    def _due_s(self) -> Iterator[float]:
        """Times at which something is due by the clock."""
        yield self._next_calibration_s
        for session in self._state.sessions:
            if session.connected:
                yield session.next_heartbeat_s
                yield session.next_refresh_s if self._state.policy.orders else math.inf
                yield math.inf if session.trouble.until_s is None else session.trouble.until_s
            else:
                yield session.last_seen_s + self._state.config.forget_lost_s


def _record(record: Callable[[Session, Fact, int], None], session: Session, facts: Facts) -> None:
    for fact in facts.facts:
        record(session, fact, facts.batch)
