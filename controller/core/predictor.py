"""Predicts the length of each answer and scores the prediction: learner, guard and policy behind one class."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs

from controller.core.prediction_records import NewRequest, facts_of, outcome_record, prediction_record, prompt_of
from controller.core.sessions import Arrival, ServedRequest, Session
from controller.policy.policy import Assessment, Policy, RequestFacts, assess_all
from controller.policy.service_levels import ServiceLevels
from online_learning.calibration.calibration import CalibrationBook, CalibrationSettings, Judgement, Measurement, judge
from online_learning.calibration.evidence import Course, Watch, bins_outlived, nothing
from online_learning.distribution import LengthDistribution
from online_learning.experts.semantic import Embedding, with_embedding
from online_learning.length_learner import (
    AtRisk,
    ClusterChange,
    Drift,
    Features,
    Forecast,
    HasClusters,
    LengthLearner,
    Observation,
    predict_all,
)
from online_learning.survival.running_answers import RunningAnswers
from store.entries import Outcome, Prediction
from store.http_routing import LengthForecast
from store.records import Arrived, Finished, IndexTable, Snapshot

PRIOR_PROMPT_TOKENS = 256
PRIOR_MAX_TOKENS = 8192
"""The prior's table is that of a request of this size."""

RIPE_ANSWERS = 100
"""Number of answers of a model before the guard scores its predictions: earlier ones are guesses."""

TURNOVERS = 2
MOST_RIPENING_ANSWERS = 5_000
"""The guard waits once, when a model is young, for this multiple of the unfinished requests, at most for this number of
answers: a learner that was taught the short ones of the first requests alone predicts too short."""

MOST_UNREVIEWED = 1_000
"""Answers of an engine that end before the guard counts them, if the engine does not say meanwhile what runs."""

MERGERS_REMEMBERED = 1_024
"""Number of merged clusters that are still mapped to the cluster that they were merged into."""

_LEARNT = ("_learner", "calibration", "_taught", "_ripe", "_next_answer", "_random", "_survivors")


@dataclass(frozen=True, slots=True)
class EnginePrediction:
    """The prediction of a request on one engine, before any engine has it."""

    index_s: float
    cost_s: float
    mean_tokens: float
    step_s: float
    """Running mean of the seconds of the engine's steps."""
    cached_tokens: int = 0
    """Prompt tokens that are expected in the engine's prefix cache."""
    saved_s: float = 0.0
    """Seconds of prefill that they save."""


class Predictor:
    """Makes, renews and scores predictions, and counts the answers that each model's learner was taught.

    If the guard does not trust the forecasts for a prompt cluster, the model's prior is served instead;
    the forecasts are still scored, so that trust can return.
    ``timer`` measures the time of a prediction; it influences no decision.
    """

    def __init__(
        self,
        *,
        learner: LengthLearner,
        policy: Policy,
        hash_key: bytes,
        timer: Callable[[], float],
        calibration: CalibrationSettings | None = None,
        levels: ServiceLevels | None = None,
    ) -> None:
        self._learner = learner
        self._levels = levels or ServiceLevels()
        self._policy = policy
        self._hash_key = hash_key
        self._timer = timer
        self._taught: dict[str, int] = {}
        self._present: Counter[str] = Counter()
        self._ripe: set[str] = set()
        self._next_answer = 0
        self._random = np.random.default_rng(0)
        self._unfinished: RunningAnswers | None = None
        self._at_risk: dict[str, AtRisk] = {}
        self._survivors: OrderedDict[int, int] = OrderedDict()
        self._changes: list[ClusterChange] = []
        self.calibration = CalibrationBook(calibration)
        self._worst_nats = (calibration or CalibrationSettings()).guard.worst_nats
        if isinstance(learner, HasClusters):
            learner.on_cluster_changed = self._cluster_changed

    def predict(self, arrivals: Sequence[Arrival], now_s: float, *, late: bool = False) -> list[NewRequest]:
        """Predict requests of one model for the first time; ``late`` if their arrival was deferred.

        The tables are those of one request after the other, to the last digit; only an answer that runs already counts
        after the predictions that are made with it. Nothing is counted before `enter`.
        """
        model = arrivals[0][0].hello.model
        started = self._timer()
        features = [self._learner.features(prompt_of(arrived, model)) for _, arrived in arrivals]
        forecasts = self._forecasts(features, model)
        served = [
            (forecast.distribution if trusted else prior).cut(arrived.max_tokens)
            for (_, arrived), (forecast, prior, trusted) in zip(arrivals, forecasts, strict=True)
        ]
        predict_s = (self._timer() - started) / len(arrivals)
        promises = [self._levels.promise(arrived, model) for _, arrived in arrivals]
        facts = [
            facts_of(arrived, session.expected_hit_tokens(arrived), promise)
            for (session, arrived), promise in zip(arrivals, promises, strict=True)
        ]
        assessed = self._assess([session for session, _ in arrivals], facts, served)
        made: list[NewRequest] = []
        for (_, arrived), promise, prompt, (forecast, prior, trusted), predicted, fact, assessment in zip(
            arrivals, promises, features, forecasts, served, facts, assessed, strict=True
        ):
            request = ServedRequest(
                arrived=arrived,
                promise=promise,
                features=prompt,
                forecast=structs.replace(forecast, at_risk=None),
                prior=prior,
                trusted=trusted,
                predicted=predicted,
                table=assessment.table,
                cost_s=assessment.cost_s,
                taught=self.taught(model),
                ripe=self._is_ripe(model, arriving=len(made)),
                cached_tokens=fact.cached_tokens,
                attained_tokens=arrived.attained_tokens,
                predicted_late=late,
            )
            record = prediction_record(request, self._hash_key, predict_s, now_s)
            made.append(NewRequest(request, record, forecast.at_risk))
        return made

    def enter(self, session: Session, new: NewRequest) -> None:
        """Count a request that was predicted among the unfinished ones."""
        if new.request.attained_tokens:
            self._resume(session, new.request, new.at_risk)
        self._present[session.hello.model] += 1

    def predict_on(self, sessions: Sequence[Session], arrived: Arrived) -> dict[str, EnginePrediction]:
        """Predict a request on each of these engines of one model, without a trace in any state."""
        if not sessions:
            return {}
        model = sessions[0].hello.model
        ((forecast, prior, trusted),) = self._forecasts([self._learner.features(prompt_of(arrived, model))], model)
        predicted = (forecast.distribution if trusted else prior).cut(arrived.max_tokens)
        found = {}
        for session in sessions:
            engine, cached_tokens = session.engine, session.expected_hit_tokens(arrived)
            facts = facts_of(arrived, cached_tokens, self._levels.promise(arrived, model))
            assessment = self._policy.assess(facts, predicted, engine)
            found[session.hello.engine_id] = EnginePrediction(
                index_s=assessment.table.index_s[0],
                cost_s=assessment.cost_s,
                mean_tokens=predicted.mean_tokens,
                step_s=engine.base_s,
                cached_tokens=cached_tokens,
                saved_s=engine.prefill_token_s * cached_tokens,
            )
        return found

    def predict_length(self, model: str, arrived: Arrived, *, served: bool) -> LengthForecast | None:
        """Predict the length of an answer, without a trace in any state.

        None for a model that no engine has ``served`` and of which no answer was taught.
        """
        if not served and not self.taught(model):
            return None
        ((forecast, prior, trusted),) = self._forecasts([self._learner.features(prompt_of(arrived, model))], model)
        predicted = (forecast.distribution if trusted else prior).cut(arrived.max_tokens)
        median, most = predicted.quantiles((0.5, 0.9))
        return LengthForecast(
            q50_tokens=median,
            q90_tokens=most,
            mean_tokens=predicted.mean_tokens,
            evidence=forecast.evidence,
            trusted=trusted,
        )

    def renew(self, stale: Sequence[tuple[Session, ServedRequest]]) -> None:
        """Predict unfinished requests of one model again, with what has been learned since."""
        model = stale[0][0].hello.model
        forecasts = self._forecasts([request.features for _, request in stale], model)
        served = [
            (forecast.distribution if trusted else prior).cut(request.arrived.max_tokens)
            for (_, request), (forecast, prior, trusted) in zip(stale, forecasts, strict=True)
        ]
        facts = [
            facts_of(
                request.arrived,
                session.expected_hit_tokens(request.arrived)
                if request.first_token_s is None
                else request.cached_tokens,
                request.promise,
            )
            for session, request in stale
        ]
        assessed = self._assess([session for session, _ in stale], facts, served)
        for (_, request), (forecast, prior, trusted), predicted, fact, assessment in zip(
            stale, forecasts, served, facts, assessed, strict=True
        ):
            request.forecast, request.prior, request.trusted = structs.replace(forecast, at_risk=None), prior, trusted
            request.predicted, request.cached_tokens = predicted, fact.cached_tokens
            request.table, request.cost_s = assessment.table, assessment.cost_s
            request.taught, request.ripe, request.watch = self.taught(model), self._is_ripe(model), None

    def refine(self, session: Session, request: ServedRequest, embedding: Embedding, now_s: float) -> Prediction:
        """Predict a request again with the embedding of its prompt; returns the record."""
        request.features = with_embedding(request.features, embedding)
        started = self._timer()
        self.renew([(session, request)])
        prediction = prediction_record(request, self._hash_key, self._timer() - started, now_s)
        # The name distinguishes the second prediction from the first in the history, even if neither was trusted.
        return structs.replace(prediction, experts={"semantic": 0.0, **prediction.experts})

    def prior(self, session: Session) -> IndexTable:
        """The table of requests that have none of their own yet."""
        max_tokens = min(PRIOR_MAX_TOKENS, session.hello.max_model_len_tokens)
        facts = RequestFacts(request_id=None, prompt_tokens=PRIOR_PROMPT_TOKENS, max_tokens=max_tokens)
        model = session.hello.model
        predicted = self._corrected(self._learner.prior(model), model, None, self._at_risk.get(model)).cut(max_tokens)
        return self._policy.assess(facts, predicted, session.engine).table

    def observe(self, session: Session, snapshot: Snapshot) -> list[Measurement]:
        """Update an engine from its snapshot, and count the tokens that its running answers have.

        Returns whose predictions lost or regained trust: evidence is weighed where ends and what runs are known up to
        the same moment.
        """
        session.observe(snapshot)
        for running in snapshot.running_requests:
            request = session.requests.get(running.request_id)
            if request is None:
                continue
            if running.attained_tokens <= request.counted_until:
                request.attained_tokens = running.attained_tokens
            else:
                self.advance(session, request, running.attained_tokens)
        return self.review(session) if snapshot.detailed else []

    def advance(self, session: Session, request: ServedRequest, attained_tokens: int) -> None:
        """Update the attained tokens of a request."""
        model = session.hello.model
        watch = self._watch(request)
        request.attained_tokens = attained_tokens
        reached = watch.reach(attained_tokens) if watch else None
        if reached is not None:
            self.calibration.progress(model, self.cluster_of(request), *reached)
        if self._unfinished is not None and not request.predicted_late:
            request.standing = self._unfinished.advance(
                request.standing, model, request.forecast.cluster, attained_tokens
            )
            request.counted_until = self._unfinished.counted_until(request.standing)

    def end(self, session: Session, request: ServedRequest, finished: Finished) -> list[Measurement]:
        """Count the end of an answer, which may be learnt later; returns whose predictions lost or regained trust."""
        if request.predicted_late or finished.output_tokens <= 0:
            return []
        model, cluster, complete = session.hello.model, self.cluster_of(request), finished.reason == "stop"
        request.surprises = (0.0, 0.0)
        self.advance(session, request, finished.output_tokens)
        if self._unfinished is not None and complete:
            request.standing = self._unfinished.end(request.standing, model, request.forecast.cluster)
        if request.watch is None:
            return []
        served, own = request.watch.end(finished.output_tokens) if complete else (nothing(), nothing())
        request.watch = None  # Half of what a request holds, and thousands may wait to be learnt.
        request.surprises = self.calibration.surprises(model, cluster, own)
        session.unreviewed.append((cluster, served, own))
        is_silent = session.detailed is None or len(session.unreviewed) >= MOST_UNREVIEWED
        return self.review(session) if is_silent else []

    def review(self, session: Session) -> list[Measurement]:
        """Weigh the answers of an engine that have ended; returns whose predictions lost or regained trust."""
        for cluster, served, own in session.unreviewed:
            self.calibration.ended(session.hello.model, cluster, served, own)
        session.unreviewed.clear()
        return self.calibration.review(session.hello.model)

    def close(self, model: str, request: ServedRequest, finished: Finished, *, learnt: bool = True) -> None:
        """Remove a request that has ended from the answers that are not learnt yet."""
        self._present[model] -= 1
        if self._unfinished is None:
            return
        try:
            if finished.output_tokens > 0 and not request.predicted_late:
                self._unfinished.record_answer(model, request.forecast.cluster, learnt=learnt)
        finally:
            self._unfinished.withdraw(request.standing)

    def abandon(self, session: Session) -> None:
        """Remove the requests of an engine that is gone from the running ones."""
        for request in session.requests.values():
            self.forget(session, request)

    def forget(self, session: Session, request: ServedRequest) -> None:
        """Remove a request from the running ones whose end will never be known."""
        self._present[session.hello.model] -= 1
        if self._unfinished is not None:
            self._unfinished.withdraw(request.standing)
        request.standing = None

    def cluster_of(self, request: ServedRequest) -> int | None:
        """The cluster that a request was predicted in, or the one that it was merged into since."""
        cluster = request.forecast.cluster
        while cluster is not None and cluster in self._survivors:
            cluster = self._survivors[cluster]
        return cluster

    def judge(
        self, session: Session, request: ServedRequest, finished: Finished, observation: Observation
    ) -> tuple[Outcome, Judgement]:
        """Score the latest prediction of a request."""
        model = session.hello.model
        max_tokens, cluster = request.arrived.max_tokens, self.cluster_of(request)
        judgement = judge(
            request.forecast.distribution.cut(max_tokens),
            request.prior.cut(max_tokens),
            observation,
            trusted=request.trusted,
            uniform=self._random.random(),
        )
        outcome = outcome_record(
            *(finished, observation, cluster, judgement),
            answer=self._next_answer,
            service_s=session.service_s(finished),
        )
        self.calibration.add(model, cluster, judgement)
        return outcome, judgement

    def rehearse(self, features: Features, model: str, observation: Observation) -> list[Measurement]:
        """Score an answer from the history as if it had been predicted just before it ended, without learning from it."""
        ((forecast, prior, trusted),) = self._forecasts([features], model)
        judgement = judge(
            forecast.distribution,
            prior,
            observation,
            trusted=trusted,
            uniform=self._random.random(),
            ripe=self.taught(model) >= RIPE_ANSWERS,
        )
        return self.calibration.record(model, forecast.cluster, judgement)

    def teach(self, features: Features, model: str, observation: Observation, answer: int | None = None) -> list[Drift]:
        """Teach the learner an answer; ``answer`` is its number in the history."""
        self._changes = []
        self._taught[model] = self.taught(model) + 1
        self._next_answer = (self._next_answer if answer is None else answer) + 1
        drifts = self._learner.learn_one(features, model, observation)
        if self._unfinished is not None:
            for drift in drifts:
                self._unfinished.record_drift(drift.model, drift.cluster)
        return drifts

    @property
    def cluster_changes(self) -> Sequence[ClusterChange]:
        """Changes of prompt clusters by the answer that was taught last."""
        return self._changes

    @property
    def next_answer(self) -> int:
        """The number of the next answer."""
        return self._next_answer

    @property
    def learnt(self) -> dict[str, object]:
        """All that answers have taught, by attribute; what runs now is not among it."""
        return {name: getattr(self, name) for name in _LEARNT}

    def restore(self, learnt: dict[str, object]) -> None:
        """Take over what was learnt by a predictor of the same settings."""
        for name in _LEARNT:
            setattr(self, name, learnt[name])

    def number_answers_from(self, answer: int) -> None:
        """Give the next answer at least this number: all lower ones are in the history."""
        self._next_answer = max(self._next_answer, answer)

    def taught(self, model: str) -> int:
        """Number of answers of a model that the learner was taught."""
        return self._taught.get(model, 0)

    def _assess(
        self, sessions: Sequence[Session], facts: Sequence[RequestFacts], predicted: Sequence[LengthDistribution]
    ) -> list[Assessment]:
        engines = {id(session): session.engine for session in sessions}
        return assess_all(
            self._policy,
            [
                (fact, served, engines[id(session)])
                for session, fact, served in zip(sessions, facts, predicted, strict=True)
            ],
        )

    def _forecasts(self, features: Sequence[Features], model: str) -> list[tuple[Forecast, LengthDistribution, bool]]:
        """The forecast of each prompt, the prior that would stand in for it, and whether the forecast is trusted."""
        forecasts = predict_all(self._learner, features, model)
        prior = self._learner.prior(model)
        at_risk = forecasts[0].at_risk
        if at_risk is not None:
            self._unfinished = self._unfinished or RunningAnswers(forecasts[0].distribution.lengths)
            self._unfinished.observe_evidence(model, at_risk.learnt)
            self._at_risk[model] = replace(at_risk, cluster=None)
            corrected = self._unfinished.correct_many(
                [forecast.distribution for forecast in forecasts],
                model,
                [forecast.cluster for forecast in forecasts],
                [forecast.at_risk for forecast in forecasts],
            )
            forecasts = [
                structs.replace(each, distribution=mass) for each, mass in zip(forecasts, corrected, strict=True)
            ]
            prior = self._corrected(prior, model, None, self._at_risk[model])
        trusts = self.calibration.trusts_cluster
        return [(forecast, prior, trusts(model, forecast.cluster)) for forecast in forecasts]

    def _corrected(
        self, predicted: LengthDistribution, model: str, cluster: int | None, at_risk: AtRisk | None
    ) -> LengthDistribution:
        """A distribution corrected by the lengths that running answers have reached."""
        return predicted if self._unfinished is None else self._unfinished.correct(predicted, model, cluster, at_risk)

    def _resume(self, session: Session, request: ServedRequest, at_risk: AtRisk | None) -> None:
        """Count the tokens that an answer had before it was known here."""
        self.advance(session, request, request.attained_tokens)
        if request.standing is not None and self._unfinished is not None:
            self._unfinished.resume(request.standing, at_risk)

    def _watch(self, request: ServedRequest) -> Watch | None:
        """What an answer's length says of its prediction, from what it had when it was predicted; None for an early guess."""
        if request.watch is None and request.ripe and not request.predicted_late:
            worst = self._worst_nats
            own = Course(request.forecast.distribution, request.prior, worst_nats=worst)
            served = own if request.trusted else Course(request.prior, request.prior, worst_nats=worst)
            request.watch = Watch(served, own, bins_outlived(request.attained_tokens))
        return request.watch

    def _is_ripe(self, model: str, *, arriving: int = 0) -> bool:
        """Whether enough answers have ended, now or before, that long ones are among them.

        ``arriving`` requests more than those that were entered are unfinished.
        """
        if model not in self._ripe:
            ripening = min(TURNOVERS * (self._present[model] + arriving), MOST_RIPENING_ANSWERS)
            if self.taught(model) < RIPE_ANSWERS + ripening:
                return False
            self._ripe.add(model)
        return True

    def _cluster_changed(self, change: ClusterChange) -> None:
        self._changes.append(change)
        if self._unfinished is not None and change.kind in {"merged", "retired"}:
            self._unfinished.move(change.cluster, change.other)
        if change.kind == "merged" and change.other is not None:
            self._survivors[change.cluster] = change.other
            if len(self._survivors) > MERGERS_REMEMBERED:
                self._survivors.popitem(last=False)
