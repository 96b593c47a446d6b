"""What is learned from the answer of a request that has ended, at once or when there is time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controller.core.deferred_work import EndedRequest
from controller.core.prediction_records import calibration_record
from controller.core.publisher import Publisher
from controller.core.sessions import ServedRequest, Session
from controller.core.state import CoreState
from online_learning.calibration.calibration import Judgement, Measurement
from online_learning.length_learner import Drift, Observation
from store.entries import Outcome
from store.records import Finished

OnFinished = Callable[[Session, ServedRequest | None, Finished, Outcome | None], None]


class Completions:
    """Scores predictions against answers, teaches the learner, and reacts to lost trust and to drift."""

    def __init__(self, state: CoreState, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self.on_judged: Callable[[Judgement], None] = lambda _judgement: None
        self.on_finished: OnFinished = lambda *_: None

    def handle(self, ended: EndedRequest, now_s: float) -> None:
        """Learn from an answer now, or when there is time; not at all if too much work waits."""
        try:
            if ended.request is not None:
                self.trust_changed(self._state.predictor.end(ended.session, ended.request, ended.finished), now_s)
        finally:
            self._learn_or_defer(ended, now_s)

    def _learn_or_defer(self, ended: EndedRequest, now_s: float) -> None:
        deferred = self._state.deferred
        if not deferred.capacity:
            self.learn(ended, now_s)
        elif deferred.has_room:
            deferred.put(ended)
        else:
            self._state.counts.not_learnt += 1
            self._close(ended)

    def learn(self, ended: EndedRequest, now_s: float) -> None:
        """Score the prediction, teach the answer, and publish what changes by it."""
        session, request, finished = ended.session, ended.request, ended.finished
        if request is None or request.predicted_late:
            self._close(ended)
            return
        self._state.predictor.close(session.hello.model, request, finished)
        outcome = self._learn(session, request, finished, now_s) if finished.output_tokens > 0 else None
        self.on_finished(session, request, finished, outcome)

    def _learn(self, session: Session, request: ServedRequest, finished: Finished, now_s: float) -> Outcome:
        state, model = self._state, session.hello.model
        observation = Observation(finished.output_tokens, finished.reason != "stop", request.surprises)
        outcome, judgement = state.predictor.judge(session, request, finished, observation)
        state.journal.record(session, outcome)
        self.on_judged(judgement)
        try:
            drifts = state.predictor.teach(request.features, model, observation)
        finally:
            state.journal.clusters_changed(session, state.predictor.cluster_changes, now_s)
        state.counts.completions += 1
        state.counts.censored += observation.censored
        for drift in drifts:
            self._drifted(session, drift, now_s)
        return outcome

    def _close(self, ended: EndedRequest) -> None:
        """Close a request without learning from its answer."""
        if ended.request is not None:
            self._state.predictor.close(ended.session.hello.model, ended.request, ended.finished, learnt=False)
        self.on_finished(ended.session, ended.request, ended.finished, None)

    def _drifted(self, session: Session, drift: Drift, now_s: float) -> None:
        """Record a drift, and predict the affected requests again on all engines of the model."""
        self._state.counts.drift_events += 1
        affected = self._publisher.affected(drift.model, drift.cluster)
        self._state.journal.drifted(session, drift, sum(len(requests) for _, requests in affected), now_s)
        self._publisher.renew_all(affected, now_s)

    def trust_changed(self, changes: Iterable[Measurement], now_s: float) -> None:
        """Fall back to the prior or to first come, first served if predictions lost trust, and return if they regained it."""
        for change in changes:
            self._trust_changed(change, now_s)

    def _trust_changed(self, change: Measurement, now_s: float) -> None:
        self._state.counts.distrusts += not change.trusted
        self._state.journal.record_global(calibration_record(change, now_s))
        if change.scope.kind == "model":
            self.switch_model(change.scope.model, change, now_s)
        else:
            self._publisher.renew_all(self._publisher.affected(change.scope.model, change.scope.cluster), now_s)

    def switch_model(self, model: str, change: Measurement, now_s: float) -> None:
        """Let a model's engines follow the trust in its predictions."""
        modes = self._state.modes
        before = modes.of_model(model)
        modes.follow(model, trusted=change.trusted)
        after = modes.of_model(model)
        if (after.mode, after.rules) != (before.mode, before.rules):
            for session in self._state.sessions.connected(model):
                self._publisher.publish_settings(session, f"predictions for {model}: {change.reason}", now_s)
