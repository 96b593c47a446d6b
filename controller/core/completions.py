"""What an answer teaches when its request has ended, at once or when there is time, and what follows from it for others."""

from __future__ import annotations

from collections.abc import Callable

from controller.core.deferred_work import Backlog, Ended
from controller.core.journal import Journal
from controller.core.modes import Modes
from controller.core.predictor import Predictor, calibration_record
from controller.core.publisher import Outgoing, Publisher
from controller.core.registry import Registry
from controller.core.sessions import ServedRequest, Session
from controller.core.settings import Counts
from online_learning.calibration.calibration import Judgement, Measurement
from online_learning.length_learner import Drift, Observation
from store.entries import Outcome
from store.records import Finished

Finish = Callable[[Session, ServedRequest | None, Finished, Outcome | None], None]


class Completions:
    """Judges predictions by the answers that came, teaches the learner, and acts on lost trust and drift."""

    def __init__(
        self,
        *,
        sessions: Registry,
        beliefs: Predictor,
        publisher: Publisher,
        modes: Modes,
        journal: Journal,
        backlog: Backlog,
        counts: Counts,
    ) -> None:
        self._sessions = sessions
        self._predictor = beliefs
        self._publisher = publisher
        self._modes = modes
        self._journal = journal
        self._backlog = backlog
        self._counts = counts
        self.on_judged: Callable[[Judgement], None] = lambda _judgement: None
        self.on_finished: Finish = lambda *_: None

    def take(self, ended: Ended, now_s: float) -> Outgoing:
        """Learn from an answer now, or when there is time; not at all when too many wait for that."""
        if not self._backlog.room:
            return self.learn(ended, now_s)
        if self._backlog.takes():
            self._backlog.put(ended)
        else:
            self._counts.not_learnt += 1
            self._pass_over(ended)
        return []

    def learn(self, ended: Ended, now_s: float) -> Outgoing:
        """Judge what was predicted, teach what came, and tell engines whatever changes by it."""
        session, request, finished = ended.session, ended.request, ended.finished
        if request is not None and request.late:
            self._pass_over(ended)
            return []
        outgoing: Outgoing = []
        outcome: Outcome | None = None
        if request is not None:
            self._predictor.close(session.hello.model, request, finished)
            if finished.output_tokens > 0:
                outcome, outgoing = self._compare(session, request, finished, now_s)
        self.on_finished(session, request, finished, outcome)
        return outgoing

    def _compare(
        self, session: Session, request: ServedRequest, finished: Finished, now_s: float
    ) -> tuple[Outcome, Outgoing]:
        """Hold what was predicted against what came."""
        model = session.hello.model
        observation = Observation(finished.output_tokens, censored=finished.reason != "stop")
        outcome, judgement, changes = self._predictor.judge(model, request, finished, observation)
        self._journal.record(session, outcome)
        self.on_judged(judgement)
        drifts = self._predictor.teach(request.features, model, observation)
        self._journal.clusters_changed(session, self._predictor.cluster_changes, now_s)
        self._counts.completions += 1
        self._counts.censored += observation.censored
        outgoing = [out for drift in drifts for out in self._drifted(session, drift, now_s)]
        outgoing += [out for change in changes for out in self._trust_changed(change, now_s)]
        return outcome, outgoing

    def _pass_over(self, ended: Ended) -> None:
        """Close a request whose answer there was no time to learn from, or to predict in time."""
        session, request, finished = ended.session, ended.request, ended.finished
        if request is not None:
            self._predictor.close(session.hello.model, request, finished)
        self.on_finished(session, request, finished, None)

    def _drifted(self, session: Session, drift: Drift, now_s: float) -> Outgoing:
        """Record a drift and form the beliefs of the prompts that it concerns anew, on all engines of the model."""
        self._counts.drift_events += 1
        concerned = self._publisher.concerned(drift.model, drift.cluster)
        self._journal.drifted(session, drift, sum(len(requests) for _, requests in concerned), now_s)
        return self._publisher.renew_all(concerned, now_s)

    def _trust_changed(self, change: Measurement, now_s: float) -> Outgoing:
        """Go back to the prior or to first come, first served where predictions lost trust, and forward again."""
        self._counts.distrusts += not change.trusted
        self._journal.note(calibration_record(change, now_s))
        if change.scope.kind == "model":
            return self._switch_model(change.scope.model, change, now_s)
        concerned = self._publisher.concerned(change.scope.model, change.scope.cluster)
        return self._publisher.renew_all(concerned, now_s)

    def _switch_model(self, model: str, change: Measurement, now_s: float) -> Outgoing:
        before = self._modes.of_model(model).mode
        self._modes.follow(model, trusted=change.trusted)
        if self._modes.of_model(model).mode == before:
            return []
        reason = f"predictions for {model}: {change.reason}"
        engines = self._sessions.connected(model)
        return [out for session in engines for out in self._publisher.publish_settings(session, reason, now_s)]
