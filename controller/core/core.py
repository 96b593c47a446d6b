"""The controller's brain: messages of engines go in, messages to engines and history entries come out.

`Core` has state and no effects: no socket, file, thread, log or clock, so that the live loop, the benchmark
in virtual time and the tests all run this very code.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

from controller.core.arrivals import Arrivals
from controller.core.completions import Completions
from controller.core.deferred_work import Backlog, Ended, Stale, Unseen
from controller.core.engine_tuning import EngineTuning
from controller.core.journal import Journal
from controller.core.modes import Modes
from controller.core.predictor import EnginePrediction, Predictor, calibration_record
from controller.core.publisher import Outgoing, Publisher
from controller.core.registry import Registry
from controller.core.sessions import Session
from controller.core.settings import CoreConfig, Counts
from controller.policy.policy import Policy
from online_learning.calibration.calibration import CalibrationBook
from online_learning.experts.semantic import Embedding
from online_learning.length_learner import Drift, Features, LengthLearner, Observation
from store.entries import EngineSeen, Entry, SettingsChanged
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

__all__ = ["Core", "CoreConfig", "Counts", "Outgoing"]


class Core:
    """Predicts, decides and records for all engines of one controller.

    ``timer`` measures the time of a prediction (``time.perf_counter`` live); it influences no decision.
    ``durable_batches`` says what the history already holds of each session.
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
        self._policy = policy
        self._config = config
        self._predictor = Predictor(
            learner=learner,
            policy=policy,
            hash_key=config.hash_key,
            timer=timer,
            calibration=config.calibration,
        )
        self._batches = dict(durable_batches or {})
        self._modes = Modes(policy, config.mode, config.lease_s)
        self._sessions = Registry(config.max_sessions)
        self._journal = Journal()
        self._unhandled: deque[tuple[Session, Fact]] = deque()
        self._outgoing: Outgoing = []
        self.recording = True
        """False while the history is so far behind that facts are to stay with the engines."""
        self._backlog = Backlog(config.backlog)
        self._next_tick_s = now_s
        self._next_calibration_s = now_s
        self.counts = Counts()
        self._publisher = Publisher(
            sessions=self._sessions,
            beliefs=self._predictor,
            policy=policy,
            modes=self._modes,
            journal=self._journal,
            backlog=self._backlog,
            counts=self.counts,
        )
        self.arrivals = Arrivals(
            sessions=self._sessions,
            beliefs=self._predictor,
            publisher=self._publisher,
            journal=self._journal,
            backlog=self._backlog,
            counts=self.counts,
            max_unfinished=config.max_unfinished,
        )
        """To be hurried where messages wait: `Arrivals.hurried`."""
        self.answers = Completions(
            sessions=self._sessions,
            beliefs=self._predictor,
            publisher=self._publisher,
            modes=self._modes,
            journal=self._journal,
            backlog=self._backlog,
            counts=self.counts,
        )
        """To be listened to: `Completions.on_judged`, `Completions.on_finished`."""
        self._journal.note(SettingsChanged(time_s=now_s, settings=self.settings, reason="start"))

    # --- what others may look at --------------------------------------------------------------------

    @property
    def sessions(self) -> list[Session]:
        """The engines, connected and lately lost; not to be changed."""
        return list(self._sessions)

    @property
    def settings(self) -> Settings:
        """The operator's settings, which are in force where predictions are trusted."""
        return self._modes.settings

    @property
    def calibration(self) -> CalibrationBook:
        """How predictions turned out lately, and whom they are trusted for; not to be changed."""
        return self._predictor.calibration

    @property
    def policy_name(self) -> str:
        """Which policy decides."""
        return self._policy.name

    def drain_entries(self) -> list[Entry]:
        """What is to be recorded since the last call, in order."""
        return self._journal.drain()

    def drain_unrecorded(self) -> list[Entry]:
        """Facts since the last call that happened while the history could take no more; engines tell them again."""
        return self._journal.drain_unrecorded()

    def drain_repeated(self) -> list[Entry]:
        """Facts told again since the last call, for the history alone; to be recorded before all others."""
        return self._journal.drain_repeated()

    # --- commands -----------------------------------------------------------------------------------

    def take(self, connection: bytes, message: EngineMessage, now_s: float) -> Outgoing:
        """Handle one message of an engine."""
        if isinstance(message, Hello):
            return self._greet(connection, message, now_s)
        session = self._sessions.of(connection)
        if session is None:
            self.counts.unknown_connections += 1
            return []
        session.last_seen_s = now_s
        match message:
            case Facts():
                self._note_facts(session, message)
                return self.proceed(now_s)
            case Snapshot():
                self._journal.record(session, message)
                self._predictor.observe(session, message)
                self._outgoing.extend(self._tend(session, now_s))
                return self.proceed(now_s)
            case Goodbye():
                self._leave(session, "left", now_s)
        return []

    def tick(self, now_s: float) -> Outgoing:
        """What is due by the clock alone: heartbeats, fresher beliefs, forgetting engines that are gone."""
        if now_s < self._next_tick_s:
            return self.proceed(now_s)
        for session in self._sessions.forget_lost(now_s - self._config.forget_lost_s):
            self._predictor.abandon(session)
            self.arrivals.leave(session)
        if now_s >= self._next_calibration_s:
            self._next_calibration_s = now_s + self._config.calibration_interval_s
            for measurement in self.calibration.due(now_s):
                self._journal.note(calibration_record(measurement, now_s))
        for session in self._sessions.connected():
            self._outgoing.extend(self._tend(session, now_s))
        self._next_tick_s = min(self._due_s())
        return self.proceed(now_s)

    @property
    def backlog(self) -> int:
        """Pieces of work that wait for `work`."""
        return len(self._backlog)

    def work(self, now_s: float) -> Outgoing:
        """Do the oldest piece of work that waits, which takes about a millisecond; nothing where none does."""
        if not self._backlog:
            return []
        match self._backlog.next():
            case Ended() as ended:
                return self.answers.learn(ended, now_s)
            case Stale() as stale:
                return self._publisher.catch_up(stale, now_s)
            case Unseen() as unseen:
                return self.arrivals.catch_up(unseen, now_s)

    @property
    def unhandled(self) -> int:
        """Facts that are noted for the history and not handled yet, because one before them raised."""
        return len(self._unhandled)

    def proceed(self, now_s: float) -> Outgoing:
        """Handle what was told, fact by fact; after one that raised, call it again for those behind it."""
        while self._unhandled:
            session, fact = self._unhandled.popleft()
            self._outgoing.extend(self._take_fact(session, fact, now_s))
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def acknowledge(self, session_id: str, batch: int) -> Outgoing:
        """Tell an engine that its facts up to this batch are durable."""
        self._batches[session_id] = max(batch, self._batches.get(session_id, 0))
        sessions = self._sessions.named(session_id)
        for session in sessions:
            session.durable_batch = max(session.durable_batch, batch)
        return [(session.connection, Acknowledged(batch=batch)) for session in sessions]

    def lost(self, connection: bytes, now_s: float) -> None:
        """The connection to an engine broke."""
        session = self._sessions.of(connection)
        if session is not None and session.connected:
            self._leave(session, "lost", now_s)

    def set_mode(self, mode: Mode, reason: str, now_s: float) -> Outgoing:
        """Switch all engines to a mode; recorded with its reason."""
        if mode == self.settings.mode:
            return []
        self._modes.switch(mode)
        self._journal.note(SettingsChanged(time_s=now_s, settings=self.settings, reason=reason))
        return [(session.connection, self._modes.of_engine(session)) for session in self._sessions.connected()]

    def predict_on(self, model: str, arrived: Arrived) -> dict[str, EnginePrediction]:
        """What would be believed of a request on each connected engine of a model; changes nothing."""
        return self._predictor.predict_on(self._sessions.connected(model), arrived)

    def refine(self, session_id: str, request_id: str, embedding: Embedding, now_s: float) -> Outgoing:
        """Form a belief again with what an encoder says of the prompt; nothing where its request has ended."""
        for session in self._sessions.connected():
            request = session.requests.get(request_id) if session.hello.session_id == session_id else None
            if request is not None:
                self._journal.record(session, self._predictor.refine(session, request, embedding, now_s))
                return self._publisher.publish(session, request, "belief", now_s)
        return []

    def teach(
        self, features: Features, model: str, observation: Observation, *, answer: int | None = None
    ) -> list[Drift]:
        """Let the learner take an answer into account, as at the rebuild from history or a benchmark's warm-up."""
        return self._predictor.teach(features, model, observation, answer)

    def number_answers_from(self, answer: int) -> None:
        """Continue the numbers under which the history has its answers."""
        self._predictor.number_answers_from(answer)

    def rehearse(self, features: Features, model: str, observation: Observation) -> None:
        """Judge how an answer of the past would be predicted, before it is taught; so the guard knows of it."""
        changes = self._predictor.rehearse(features, model, observation)
        for trusted in (change.trusted for change in changes if change.scope.kind == "model"):
            self._modes.follow(model, trusted=trusted)

    # --- connections --------------------------------------------------------------------------------

    def _greet(self, connection: bytes, hello: Hello, now_s: float) -> Outgoing:
        if self._sessions.is_of_another(hello):
            self.counts.unknown_connections += 1
            return []
        previous = self._sessions.drop(hello.session_id)
        if self._sessions.full:
            self.counts.unknown_connections += 1
            return []
        durable = self._batches.get(hello.session_id, 0)
        session = Session(
            hello=hello,
            connection=connection,
            connected=True,
            last_seen_s=now_s,
            received_batch=previous.received_batch if previous else durable,
            recorded_batch=previous.recorded_batch if previous else durable,
            durable_batch=durable,
            next_heartbeat_s=now_s,
            next_refresh_s=now_s + self._config.refresh_interval_s,
            tuning=previous.tuning if previous else EngineTuning(self._policy.tuning),
            requests=previous.requests if previous else {},
        )
        self._sessions.enter(session)
        self._next_tick_s = now_s
        self._journal.record(
            session, EngineSeen(time_s=now_s, event="reconnected" if previous else "connected", hello=hello)
        )
        welcome = Welcome(controller_id=self._config.controller_id, durable_batch=durable)
        self._outgoing += [(connection, welcome), (connection, self._modes.of_engine(session))]
        self._outgoing += self._publisher.publish_prior(session)
        return self.proceed(now_s)

    def _leave(self, session: Session, event: Literal["left", "lost"], now_s: float) -> None:
        session.connected = False
        session.last_seen_s = now_s
        self._next_tick_s = now_s
        self._journal.record(session, EngineSeen(time_s=now_s, event=event, hello=session.hello))

    def _tend(self, session: Session, now_s: float) -> Outgoing:
        """Heartbeat and fresher beliefs, each when it is due."""
        outgoing: Outgoing = []
        if now_s >= session.next_heartbeat_s:
            session.next_heartbeat_s = now_s + self._config.lease_s / 4
            read_s = session.snapshot.time_s if session.snapshot else None
            heartbeat = Heartbeat(time_s=now_s, read_s=read_s, settings=self._modes.of_engine(session))
            self._outgoing.append((session.connection, heartbeat))
        if now_s >= session.next_refresh_s and self._policy.orders:
            session.next_refresh_s = now_s + self._config.refresh_interval_s
            outgoing.extend(self._publisher.refresh(session, self._config.refresh_requests, now_s))
            outgoing.extend(self._tune(session, now_s))
        return outgoing

    def _tune(self, session: Session, now_s: float) -> Outgoing:
        """Adapt the engine's own part of the settings, if what it measured asks for it."""
        reasons = session.tuning.due(now_s)
        if not reasons:
            return []
        self._modes.renumber()
        return self._publisher.publish_settings(session, "; ".join(reasons), now_s)

    # --- facts --------------------------------------------------------------------------------------

    def _note_facts(self, session: Session, facts: Facts) -> None:
        """Note facts for the history once, and batches in their order: one that comes too early will come again."""
        match session.judge(facts, recording=self.recording):
            case "known":
                self.counts.duplicate_batches += 1
                if facts.batch <= session.durable_batch:
                    self._outgoing.append((session.connection, Acknowledged(batch=session.durable_batch)))
            case "repeated":
                self.counts.duplicate_batches += 1
                _note(self._journal.repeat, session, facts)
            case "early":
                self.counts.early_batches += 1
            case "unrecorded":
                self.counts.unrecorded_batches += 1
                _note(self._journal.leave_out, session, facts)
                self._queue_up(session, facts)
            case "new":
                _note(self._journal.record, session, facts)
                self._queue_up(session, facts)

    def _queue_up(self, session: Session, facts: Facts) -> None:
        self._unhandled.extend((session, fact) for fact in facts.facts)
        if self._config.acknowledge_at_once:
            self._outgoing.extend(self.acknowledge(session.hello.session_id, facts.batch))

    def _take_fact(self, session: Session, fact: Fact, now_s: float) -> Outgoing:
        match fact:
            case Arrived():
                return self.arrivals.take(session, fact, now_s) if self._policy.orders else []
            case Finished():
                return self._finish(session, fact, now_s)
            case FirstToken() | Preempted():
                session.note(fact)
        return []

    def _finish(self, session: Session, finished: Finished, now_s: float) -> Outgoing:
        request = session.requests.pop(finished.request_id, None)
        self.arrivals.ended(session, finished.request_id)
        session.tuning.take(finished)
        return self.answers.take(Ended(session, request, finished), now_s)

    def _due_s(self) -> Iterator[float]:
        """When something is due by the clock alone, as far as is known now."""
        yield self._next_calibration_s
        for session in self._sessions:
            if session.connected:
                yield session.next_heartbeat_s
                yield session.next_refresh_s if self._policy.orders else math.inf
            else:
                yield session.last_seen_s + self._config.forget_lost_s


def _note(note: Callable[[Session, Fact, int], None], session: Session, facts: Facts) -> None:
    for fact in facts.facts:
        note(session, fact, facts.batch)
