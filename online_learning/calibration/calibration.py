"""Calibration as a live fact: how predictions turned out lately, for each model and each prompt cluster.

Everything is bounded: answers by windows, models and clusters by counts.
Answers that were cut count by what is known of them, as in `online_learning.calibration.scoring`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from online_learning.calibration.evidence import LOG_TOKENS, Row, nothing
from online_learning.calibration.guard import Guard, GuardSettings
from online_learning.calibration.scoring import (
    PIT_BINS,
    Score,
    kendall_tau,
    log_score,
    mean_pinball_tokens,
    score,
    within,
)
from online_learning.distribution import FloatArray, LengthDistribution
from online_learning.length_learner import Observation

ScopeKind: TypeAlias = Literal["model", "cluster", "rest"]
ALL_WELL = "due"
"""Why a measurement was taken when trust did not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """Bounds, and how often figures are worked out."""

    model_window: int = 1_000
    cluster_window: int = 200
    kendall_answers: int = 300
    """Answers, the latest, of which pairs are compared: work and memory grow with their square."""
    max_models: int = 16
    max_clusters: int = 256
    """Clusters with a window of their own, over all models; the rest of a model's share one."""
    idle_answers: int = 5_000
    """Answers since a cluster's last one after which it makes room for another."""
    every_answers: int = 100
    every_s: float = 60.0
    """A window is measured after this number of new answers, or, with fewer, after this time."""
    at_once: int = 4
    """Windows that are measured in one go, so that no caller waits long."""
    guard: GuardSettings = field(default_factory=GuardSettings)
    model_guard_window: int = 400


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose predictions: all of a model, those of one of its clusters, or those of no cluster with its own window."""

    model: str
    kind: ScopeKind = "model"
    cluster: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One prediction, the distribution that decisions rested on, and the prior, against one outcome."""

    score: Score
    """Of the learner's own prediction."""
    served: Score
    """Of what decisions rested on: the prediction, or the prior where the prediction was not trusted."""
    prior_log_score: float
    pinball_tokens: float
    median_tokens: int
    observation: Observation
    ripe: bool
    """Whether the learner knew enough when it predicted for the guard to hold it to that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Means over a window of the learner's own predictions, and whether they are trusted."""

    scope: Scope
    answers: int
    censored: int
    coverage_50: float
    coverage_90: float
    crps_tokens: float
    log_score: float
    prior_log_score: float
    """Of the model's prior on the same answers."""
    pinball_tokens: float
    kendall_tau: float
    """Of the median with the length, over the latest answers of the window."""
    pit_histogram: tuple[float, ...]
    trusted: bool
    reason: str
    """Why it was measured: `ALL_WELL`, or how trust was lost or came back."""


def judge(
    predicted: LengthDistribution,
    prior: LengthDistribution,
    observation: Observation,
    *,
    trusted: bool,
    uniform: float,
    ripe: bool = True,
) -> Judgement:
    """Compare a prediction and the prior that would have stood in for it with what came."""
    own = score(predicted, observation, uniform)
    return Judgement(
        score=own,
        served=own if trusted else score(prior, observation, uniform),
        prior_log_score=log_score(prior, observation),
        pinball_tokens=mean_pinball_tokens(predicted, observation),
        median_tokens=predicted.quantile(0.5),
        observation=observation,
        ripe=ripe,
    )


class CalibrationBook:
    """Windows and guards of all models and clusters; its state follows from the judgements in their order.

    Args:
        settings: sizes of the windows in answers, bounds on models and clusters, and when trust changes.
    """

    def __init__(self, settings: CalibrationSettings | None = None) -> None:
        self._settings = settings or CalibrationSettings()
        self._models: OrderedDict[str, _Window] = OrderedDict()
        self._clusters: OrderedDict[Scope, _Window] = OrderedDict()
        self._unreviewed: dict[Scope, _Window] = {}
        self._answers = 0

    def record(self, model: str, cluster: int | None, judgement: Judgement) -> list[Measurement]:
        """Record how a prediction turned out as a whole; returns the measurements of the scopes whose trust it changed.

        Right where answers end in the order in which they were predicted; `progress` and `ended` are, where they do not.
        """
        changed = []
        self.add(model, cluster, judgement)
        for window, scored in (
            (self._of_model(model), judgement.served),
            (self._of_cluster(model, cluster), judgement.score),
        ):
            if judgement.ripe and window.guard.observe(scored, judgement.prior_log_score):
                changed.append(window.measure(_news(window.guard)))
        return changed

    def add(self, model: str, cluster: int | None, judgement: Judgement) -> None:
        """Record how a prediction turned out, for the measurements alone."""
        self._answers += 1
        for window in (self._of_model(model), self._of_cluster(model, cluster)):
            window.add(judgement, self._answers)

    def progress(self, model: str, cluster: int | None, served: Row, own: Row) -> None:
        """Count what became known of an answer that still runs, under the served and the learner's own distribution."""
        of_model, of_cluster = self._of_model(model), self._of_cluster(model, cluster)
        of_model.pending += served
        of_cluster.pending += own
        of_model.surprise += own[LOG_TOKENS]
        of_cluster.surprise += own[LOG_TOKENS]

    def surprises(self, model: str, cluster: int | None, own: Row) -> tuple[float, float]:
        """By how much the answers of a model and of a cluster were longer than predicted since one of them last ended.

        As differences of logarithms, with the changes ``own`` of the one that ends now.
        """
        windows = (self._of_model(model), self._of_cluster(model, cluster))
        of_model, of_cluster = (float(window.surprise + own[LOG_TOKENS]) for window in windows)
        for window in windows:
            window.surprise = 0.0
        return of_model, of_cluster

    def ended(self, model: str, cluster: int | None, served: Row, own: Row) -> None:
        """Count the end of an answer; `review` decides by it, once what still runs is counted up to the same moment."""
        for window, row in ((self._of_model(model), served), (self._of_cluster(model, cluster), own)):
            window.guard.count(window.pending + row)
            window.pending[:] = 0.0
            self._unreviewed[window.scope] = window

    def review(self, model: str) -> list[Measurement]:
        """Decide on the trust in a model and its clusters; returns the measurements of the scopes whose trust changed."""
        changed = []
        for scope in [s for s, w in self._unreviewed.items() if s.model == model and not w.is_empty]:
            window = self._unreviewed.pop(scope)
            if window.guard.review():
                changed.append(window.measure(_news(window.guard)))
        return changed

    def trusts_cluster(self, model: str, cluster: int | None) -> bool:
        """Whether the learner's predictions for a cluster are better used than the model's prior."""
        window = self._clusters.get(Scope(model, "cluster", cluster))
        if window is None and (cluster is None or len(self._clusters) >= self._settings.max_clusters):
            window = self._clusters.get(Scope(model, "rest"))
        return window is None or window.guard.trusted

    @property
    def doubted_models(self) -> list[str]:
        """The models whose predictions are not trusted."""
        return [model for model, window in self._models.items() if not window.guard.trusted]

    def due(self, now_s: float) -> list[Measurement]:
        """Measure some of the windows that it is time for."""
        measured: list[Measurement] = []
        for window in (*self._models.values(), *self._clusters.values()):
            if len(measured) >= self._settings.at_once:
                break
            if window.is_due(now_s):
                window.due_s = now_s + self._settings.every_s
                measured.append(window.measure(ALL_WELL))
        return measured

    def latest(self) -> tuple[Measurement, ...]:
        """The last measurement of each model and of each cluster that is not trusted, with the trust of now."""
        windows = (*self._models.values(), *(w for w in self._clusters.values() if not w.guard.trusted))
        return tuple(replace(w.last, trusted=w.guard.trusted) for w in windows if w.last is not None)

    def _of_model(self, model: str) -> _Window:
        if model not in self._models:
            if len(self._models) >= self._settings.max_models:
                forgotten, _ = self._models.popitem(last=False)
                self._clusters = OrderedDict((s, w) for s, w in self._clusters.items() if s.model != forgotten)
            guard = replace(self._settings.guard, window_answers=self._settings.model_guard_window)
            self._models[model] = self._window(Scope(model), self._settings.model_window, guard)
        self._models.move_to_end(model)
        return self._models[model]

    def _of_cluster(self, model: str, cluster: int | None) -> _Window:
        scope = Scope(model, "rest") if cluster is None else Scope(model, "cluster", cluster)
        if scope not in self._clusters:
            if scope.kind == "cluster" and not self._has_room():
                return self._of_cluster(model, None)
            self._clusters[scope] = self._window(scope, self._settings.cluster_window, self._settings.guard)
        self._clusters.move_to_end(scope)
        return self._clusters[scope]

    def _has_room(self) -> bool:
        """Whether one more cluster fits; the one without an answer for longest goes if that was very long."""
        if len(self._clusters) < self._settings.max_clusters:
            return True
        scope, window = next(iter(self._clusters.items()))
        if self._answers - window.last_answer < self._settings.idle_answers:
            return False
        del self._clusters[scope]
        return True

    def _window(self, scope: Scope, answers: int, guard: GuardSettings) -> _Window:
        window = _Window(scope, answers, Guard(guard, needs_coverage=scope.kind == "model"), self._settings)
        window.last_answer = self._answers
        return window


class _Window:
    """The last judgements of one scope, one row of figures each."""

    def __init__(self, scope: Scope, answers: int, guard: Guard, settings: CalibrationSettings) -> None:
        self.scope = scope
        self.guard = guard
        self.last: Measurement | None = None
        self.last_answer = 0
        self.pending: Row = nothing()
        """What became known of answers that run since one ended."""
        self.surprise = 0.0
        """The same, of the logarithm of their length under the learner's own predictions."""
        self.due_s = 0.0
        self._settings = settings
        self._rows: FloatArray = np.empty((answers, 8))
        self._seen = 0
        self._measured = 0

    def add(self, judgement: Judgement, answer: int) -> None:
        """Take the newest in, and the oldest out when the window is full; ``answer`` numbers it over all scopes."""
        own, observation = judgement.score, judgement.observation
        self._rows[self._seen % len(self._rows)] = (
            own.pit,
            own.crps_tokens,
            own.log_score,
            judgement.prior_log_score,
            judgement.pinball_tokens,
            judgement.median_tokens,
            observation.output_tokens,
            observation.censored,
        )
        self._seen += 1
        self.last_answer = answer

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be measured yet."""
        return self._seen == 0

    def is_due(self, now_s: float) -> bool:
        """Whether there is enough news."""
        news = self._seen - self._measured
        return news >= self._settings.every_answers or (news > 0 and now_s >= self.due_s)

    def measure(self, reason: str) -> Measurement:
        """Means over the window, in which there must be an answer."""
        rows = self._in_order()
        transforms, crps, log_scores, prior, pinball, medians, lengths, censored = rows.T
        pairs = slice(-self._settings.kendall_answers, None)
        counts = np.histogram(transforms, bins=PIT_BINS, range=(0.0, 1.0))[0]
        self.last = Measurement(
            scope=self.scope,
            answers=len(rows),
            censored=int(censored.sum()),
            coverage_50=float(np.mean([within(transform, 0.5) for transform in transforms])),
            coverage_90=float(np.mean([within(transform, 0.9) for transform in transforms])),
            crps_tokens=float(crps.mean()),
            log_score=float(log_scores.mean()),
            prior_log_score=float(prior.mean()),
            pinball_tokens=float(pinball.mean()),
            kendall_tau=kendall_tau(medians[pairs], lengths[pairs], censored[pairs]),
            pit_histogram=tuple(float(count) / len(rows) for count in counts),
            trusted=self.guard.trusted,
            reason=reason,
        )
        self._measured = self._seen
        return self.last

    def _in_order(self) -> FloatArray:
        if self._seen <= len(self._rows):
            return self._rows[: self._seen]
        return np.roll(self._rows, -(self._seen % len(self._rows)), axis=0)


def _news(guard: Guard) -> str:
    return "trusted again" if guard.reason is None else guard.reason
