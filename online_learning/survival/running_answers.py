"""Answers that still run, as evidence: each has outlived the length that it has reached.

A learner that is taught answers only when they end is taught the short ones first, and predicts all answers short until
the long ones are through. What the running ones have outlived makes up for that. It is never taught: it stands beside
what was learnt, follows the answers as they grow, and is withdrawn when they end, so that nothing counts twice.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from online_learning.distribution import FloatArray, IntArray, LengthDistribution
from online_learning.length_learner import AtRisk
from online_learning.survival.hazard import mass_from_hazard
from online_learning.survival.per_model import ModelTable

_FORGOT = 0.8
"""A model's evidence that falls below this share of what it was has been cut back at a drift; it never fades so fast."""

_LEAST_FACTOR = 0.02
_MOST_FACTOR = 2.0
"""Bounds of what running answers may do to a hazard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAnswersSettings:
    """How what ran before is forgotten: as the learner forgets what ended."""

    model_memory_answers: float = 5_000.0
    cluster_memory_answers: float = 1_000.0
    max_scopes: int = 2_048
    """Models, and clusters of models, that are remembered; the one that was updated longest ago is forgotten first."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an unfinished answer has been counted, and as whose."""

    model: str
    cluster: int | None
    bins: int
    """Bins that it has outlived."""

    def reaching(self, bins: int) -> Standing:
        """The same answer, once it has outlived this number of bins."""
        return Standing(self.model, self.cluster, bins)


class _Scope:
    """Running answers that have outlived each bin: now, and as the average over what was learnt."""

    def __init__(self, bins: int) -> None:
        self.now: FloatArray = np.zeros(bins)
        self.before: FloatArray = np.zeros(bins)
        self.learnt = 0.0

    @property
    def missing(self) -> FloatArray:
        """What the learner would know more of, had it been taught every token as it came."""
        return np.asarray(self.now - self.before)


class RunningAnswers:
    """What running answers have outlived, by model and by prompt cluster, and predicted distributions corrected by it.

    Had every bin counted when it was outlived, rather than when its answer ended, the learner's numbers at risk would
    be X + Y instead of X. With O the running answers that have outlived each bin now, Y decays as X does and grows as
    O does: Y = O - Ō, where Ō is the average of O over the answers learnt, with the learner's own forgetting. A young
    system has Ō near 0 and counts all that runs, which is the estimate of Kaplan and Meier (1958). In an old one in
    balance, Y is nothing, as it should be: then the answers that end are a fair sample. So it is right after a drift
    has made the learner forget, for what it learnt since began with as many running.
    Wrong by what a model's or cluster's running answers say of others in it that the learner tells apart.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: memories in answers, which must be the learner's own, and the bound on scopes.
    """

    def __init__(self, lengths: IntArray, settings: RunningAnswersSettings | None = None) -> None:
        self._settings = settings or RunningAnswersSettings()
        self._lengths: list[int] = lengths.tolist()
        self._scopes = ModelTable(lambda: _Scope(len(self._lengths)), bound=self._settings.max_scopes)
        self._moved: OrderedDict[int, int | None] = OrderedDict()

    def advance(
        self, standing: Standing | None, model: str, cluster: int | None, attained_tokens: int
    ) -> Standing | None:
        """Count what an answer has outlived since it was last counted; None while that is nothing."""
        bins = bisect_left(self._lengths, attained_tokens)
        before = 0 if standing is None else standing.bins
        if bins <= before:
            return standing
        moved = Standing(model, cluster, bins) if standing is None else standing.reaching(bins)
        for name in self._names(moved):
            self._scopes.get_or_create(name).now[before:bins] += 1.0
        return moved

    def counted_until(self, standing: Standing | None) -> int:
        """Attained tokens up to which `advance` has nothing to count.

        >>> running = RunningAnswers(np.array([1, 2, 4]))
        >>> standing = running.advance(None, "m", None, 3)
        >>> running.counted_until(None), running.counted_until(standing)
        (1, 4)
        """
        bins = 0 if standing is None else standing.bins
        return self._lengths[bins] if bins < len(self._lengths) else sys.maxsize

    def cluster_of(self, cluster: int | None) -> int | None:
        """The cluster that another was merged into; None for one that is gone."""
        while cluster is not None and cluster in self._moved:
            cluster = self._moved[cluster]
        return cluster

    def move(self, cluster: int, into: int | None) -> None:
        """Let a cluster's running answers be another's, or, where it is just gone, those of no cluster."""
        self._moved[cluster] = into
        if len(self._moved) > self._settings.max_scopes:
            self._moved.popitem(last=False)
        for name, scope in self._scopes.items():
            of_cluster, _, model = name.partition("/")
            if of_cluster == str(cluster):
                heir = self._scopes.get_or_create(_name(model, self.cluster_of(into)))
                heir.now += scope.now
                heir.before += scope.before
                scope.now[:] = scope.before[:] = 0.0

    def resume(self, standing: Standing, at_risk: AtRisk | None) -> None:
        """Let an answer that ran before this learner began count as before it, as far as others did.

        What was learnt before the restart had it running too, on average. Where nothing was learnt yet we only know
        of it because it is long, and what it outlived before we looked says nothing.
        """
        model, cluster = (1.0, 1.0) if at_risk is None else self._shares(at_risk)
        for name, share in zip(self._names(standing), (model, cluster), strict=True):
            self._scopes.get_or_create(name).before[: standing.bins] += share

    def withdraw(self, standing: Standing | None) -> None:
        """Count an answer no longer, because it ended or its engine is gone."""
        if standing is None:
            return
        for name in self._names(standing):
            scope = self._scopes.get(name)
            if scope is not None:
                scope.now[: standing.bins] = np.maximum(scope.now[: standing.bins] - 1.0, 0.0)

    def record_answer(self, model: str, cluster: int | None) -> None:
        """Average what runs over the answers learnt; to be called for each, before the answer itself is withdrawn."""
        settings = self._settings
        memories = (settings.model_memory_answers, settings.cluster_memory_answers)
        for name, memory in zip(self._names(Standing(model, cluster, 0)), memories, strict=True):
            scope = self._scopes.get(name)
            if scope is not None:
                scope.before += (scope.now - scope.before) / memory

    def observe_evidence(self, model: str, learnt: float) -> None:
        """Look whether the learner forgot a part of what it knew of a model: then what was learnt begins now."""
        scope = self._scopes.get(_everything(model))
        if scope is not None:
            if learnt < _FORGOT * scope.learnt:
                scope.before = scope.now.copy()
            scope.learnt = learnt

    def record_drift(self, model: str, cluster: int) -> None:
        """The learner forgot a part of what it knew of a cluster: what it learnt begins now."""
        scope = self._scopes.get(_name(model, self.cluster_of(cluster)))
        if scope is not None:
            scope.before = scope.now.copy()

    def correct(
        self, predicted: LengthDistribution, model: str, cluster: int | None, at_risk: AtRisk | None
    ) -> LengthDistribution:
        """A distribution on the learner's grid, corrected by the evidence of what runs; the same one where there is none.

        Hazards are events by answers at risk, so that more at risk lower them: h·X/(X + Y) for the model, and for the
        cluster, whose hazards are drawn to the model's by a weight q, h·(X + q·r)/(X + q + Y) with the model's r.
        Of the running answers that are in no cluster each has its share by size.
        """
        if at_risk is None or len(self._lengths) != predicted.lengths.size:
            return predicted
        of_model = self._scopes.get(_everything(model))
        if of_model is None:
            return predicted
        factor = _ratio(at_risk.model, at_risk.model, of_model.missing)
        if at_risk.cluster is not None and at_risk.drawn is not None:
            known, drawn = at_risk.cluster, at_risk.drawn
            missing = self._missing(model, cluster) + self._missing(model, None) * (known[0] / max(at_risk.learnt, 1.0))
            factor = _ratio(known + drawn * factor, known + drawn, missing)
        return LengthDistribution(predicted.lengths, _slowed(predicted.mass, factor))

    def _missing(self, model: str, cluster: int | None) -> FloatArray | float:
        scope = self._scopes.get(_name(model, cluster))
        return 0.0 if scope is None else scope.missing

    def _names(self, standing: Standing) -> tuple[str, str]:
        return _everything(standing.model), _name(standing.model, self.cluster_of(standing.cluster))

    def _shares(self, at_risk: AtRisk) -> tuple[float, float]:
        """How far the learner's memory is filled, of the model and of the cluster; 1 where it is empty."""
        model = _filled(float(at_risk.learnt), self._settings.model_memory_answers)
        in_cluster = 0.0 if at_risk.cluster is None else float(at_risk.cluster[0])
        return model, _filled(in_cluster, self._settings.cluster_memory_answers) if at_risk.learnt else 1.0


def _filled(answers: float, memory_answers: float) -> float:
    return min(1.0, answers / memory_answers) if answers > 0.0 else 1.0


def _ratio(numerator: FloatArray, known: FloatArray, missing: FloatArray | float) -> FloatArray:
    """Answers at risk before by those with the missing ones; within bounds."""
    more = np.maximum(known + missing, 0.5 * known)
    return np.asarray((numerator / np.maximum(more, 1e-12)).clip(_LEAST_FACTOR, _MOST_FACTOR))


def _slowed(mass: FloatArray, factor: FloatArray) -> FloatArray:
    """The mass whose hazards are ``factor`` times those of another."""
    survival = mass[::-1].cumsum()[::-1]
    hazard = np.divide(mass, survival, out=np.ones_like(mass), where=survival > 0.0)
    return mass_from_hazard(np.minimum(hazard * factor, 1.0))


def _everything(model: str) -> str:
    return f"all/{model}"


def _name(model: str, cluster: int | None) -> str:
    """Of a cluster, or of the answers that are in none."""
    return f"{cluster}/{model}"
