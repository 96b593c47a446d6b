"""Answers that still run, as evidence: each has outlived the length that it has reached.

A learner that is taught answers only when they end is taught the short ones first, and predicts all answers short until
the long ones are through. What the running ones have outlived makes up for that. It is never taught: it stands beside
what was learnt, follows the answers as they grow, and is withdrawn when they are learnt, so that nothing counts twice.
An answer that has ended and waits to be learnt is no survivor: it counts with its end.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
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

_SHARE_MEMORY_ANSWERS = 1_000.0
"""Ended answers over which the share of them that is learnt is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAnswersSettings:
    """How what ran before is forgotten: as the learner forgets what ended."""

    model_memory_answers: float = 5_000.0
    cluster_memory_answers: float = 1_000.0
    max_scopes: int = 2_048
    """Models, and clusters of models, that are remembered; the one that was updated longest ago is forgotten first."""


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How far an unfinished answer has been counted, and as whose."""

    model: str
    cluster: int | None
    bins: int
    """Bins that it has outlived."""
    ended: bool = False
    """Whether it ended in the next bin."""

    def reaching(self, bins: int) -> Standing:
        """The same answer, once it has outlived this number of bins."""
        return Standing(self.model, self.cluster, bins)


class _Scope:
    """Answers not learnt yet that were at risk in each bin, and that ended in it: now, and averaged over what was learnt."""

    def __init__(self, bins: int) -> None:
        self.now: FloatArray = np.zeros(bins)
        self.before: FloatArray = np.zeros(bins)
        self.ended: FloatArray = np.zeros(bins)
        self.ended_before: FloatArray = np.zeros(bins)
        self.learnt = 0.0
        self.learnt_share = 1.0
        """Share of the ended answers that are learnt; the rest are left out for lack of time."""

    @property
    def missing(self) -> FloatArray:
        """At risk beside what the learner knows, had it been taught every token as it came; shape (bins,).

        As many of those that run as will be learnt, because the others' ends will not be either.
        """
        return np.asarray(self.learnt_share * self.now - self.before)

    @property
    def missing_ends(self) -> FloatArray:
        """Ends that the learner would know more of; shape (bins,)."""
        return np.asarray(self.learnt_share * self.ended - self.ended_before)

    def record_answer(self, memory_answers: float, *, learnt: bool) -> None:
        """Average over the answers learnt."""
        self.learnt_share += (learnt - self.learnt_share) / _SHARE_MEMORY_ANSWERS
        if learnt:
            self.before += self.missing / memory_answers
            self.ended_before += self.missing_ends / memory_answers

    def begin_again(self) -> None:
        """What was learnt begins now."""
        self.before = self.learnt_share * self.now
        self.ended_before = self.learnt_share * self.ended

    def absorb(self, other: _Scope) -> None:
        """Take over another's answers."""
        for own, others in zip(self._counts(), other._counts(), strict=True):
            own[:] += others
            others[:] = 0.0

    def _counts(self) -> tuple[FloatArray, ...]:
        return self.now, self.before, self.ended, self.ended_before


class RunningAnswers:
    """What running answers have outlived, by model and by prompt cluster, and predicted distributions corrected by it.

    Had every bin counted when it was outlived, rather than when its answer ended, the learner's numbers at risk would
    be X + Y instead of X. With O the running answers that have outlived each bin now, Y decays as X does and grows as
    O does: Y = O - Ō, where Ō is the average of O over the answers learnt, with the learner's own forgetting. A young
    system has Ō near 0 and counts all that runs, which is the estimate of Kaplan and Meier (1958). In an old one in
    balance, Y is nothing, as it should be: then the answers that end are a fair sample. So it is right after a drift
    has made the learner forget, for what it learnt since began with as many running.
    Answers that have ended and wait to be learnt belong to O, up to their ends, and to the ends D, of which the learner
    lacks D - D̄ in the same way.
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
        for scope in self._scopes_of(moved):
            scope.now[before:bins] += 1.0
        return moved

    def end(self, standing: Standing | None, model: str, cluster: int | None) -> Standing:
        """Count the end of an answer in the bin after those that it has outlived, until it is withdrawn."""
        bins = 0 if standing is None else standing.bins
        ended = (
            Standing(model, cluster, bins, True) if standing is None else msgspec.structs.replace(standing, ended=True)
        )
        for scope in self._scopes_of(ended):
            scope.now[bins : bins + 1] += 1.0
            scope.ended[bins : bins + 1] += 1.0
        return ended

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
                heir.absorb(scope)

    def resume(self, standing: Standing, at_risk: AtRisk | None) -> None:
        """Let an answer that ran before this learner began count as before it, as far as others did.

        What was learnt before the restart had it running too, on average. Where nothing was learnt yet we only know
        of it because it is long, and what it outlived before we looked says nothing.
        """
        model, cluster = (1.0, 1.0) if at_risk is None else self._shares(at_risk)
        for scope, share in zip(self._scopes_of(standing), (model, cluster), strict=True):
            scope.before[: standing.bins] += share

    def withdraw(self, standing: Standing | None) -> None:
        """Count an answer no longer, because it is learnt, left out, or its engine is gone."""
        if standing is None:
            return
        for name in self._names(standing):
            scope = self._scopes.get(name)
            if scope is not None:
                until = standing.bins + standing.ended
                scope.now[:until] = np.maximum(scope.now[:until] - 1.0, 0.0)
                scope.ended[standing.bins : until] = np.maximum(scope.ended[standing.bins : until] - 1.0, 0.0)

    def record_answer(self, model: str, cluster: int | None, *, learnt: bool = True) -> None:
        """Average what runs over the answers learnt; to be called for each that ended, before it is withdrawn.

        Args:
            model: whose it was.
            cluster: the prompt cluster in which it was predicted.
            learnt: False for an answer that is left out for lack of time.
        """
        settings = self._settings
        memories = (settings.model_memory_answers, settings.cluster_memory_answers)
        for name, memory in zip(self._names(Standing(model, cluster, 0)), memories, strict=True):
            scope = self._scopes.get(name)
            if scope is not None:
                scope.record_answer(memory, learnt=learnt)

    def observe_evidence(self, model: str, learnt: float) -> None:
        """Look whether the learner forgot a part of what it knew of a model: then what was learnt begins now."""
        scope = self._scopes.get(_everything(model))
        if scope is not None:
            if learnt < _FORGOT * scope.learnt:
                scope.begin_again()
            scope.learnt = learnt

    def record_drift(self, model: str, cluster: int) -> None:
        """The learner forgot a part of what it knew of a cluster: what it learnt begins now."""
        scope = self._scopes.get(_name(model, self.cluster_of(cluster)))
        if scope is not None:
            scope.begin_again()

    def correct(
        self, predicted: LengthDistribution, model: str, cluster: int | None, at_risk: AtRisk | None
    ) -> LengthDistribution:
        """A distribution on the learner's grid, corrected by the evidence of what runs; the same one where there is none."""
        return self.correct_many([predicted], model, [cluster], [at_risk])[0]

    def correct_many(
        self,
        predicted: Sequence[LengthDistribution],
        model: str,
        clusters: Sequence[int | None],
        at_risk: Sequence[AtRisk | None],
    ) -> list[LengthDistribution]:
        """Several distributions of one model, each corrected as it would be alone, to the last digit.

        Hazards are events by answers at risk, so that more at risk lower them, and E more ends raise them:
        (h·X + E)/(X + Y) = h·r + e for the model, and for the cluster, whose hazards are drawn to the model's by a weight
        q, (h·(X + q·r) + q·e + E)/(X + q + Y).
        Of the running answers that are in no cluster each has its share by size.
        """
        of_model = self._scopes.get(_everything(model))
        lengths = predicted[0].lengths
        if of_model is None or at_risk[0] is None or len(self._lengths) != lengths.size:
            return list(predicted)
        known = at_risk[0].model
        factor, ends = _ratios(known, known, of_model.missing, of_model.missing_ends)
        reached = [risk for risk in at_risk if risk is not None and risk.cluster is not None]
        assert len(reached) in {0, len(at_risk)}, "a learner has clusters or not"
        if reached:
            factor, ends = self._in_clusters(model, clusters, reached, factor, ends)
        masses = _moved(np.stack([distribution.mass for distribution in predicted]), factor, ends)
        # Copies, so that one answer that runs for long does not keep what belongs to the others.
        return [LengthDistribution(lengths, mass.copy()) for mass in masses]

    def _in_clusters(
        self,
        model: str,
        clusters: Sequence[int | None],
        at_risk: Sequence[AtRisk],
        factor: FloatArray,
        ends: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Ratios for the prompts of clusters, a row for each, from those of their model."""
        known = np.stack([risk.cluster for risk in at_risk if risk.cluster is not None])
        drawn = np.stack([risk.drawn for risk in at_risk if risk.drawn is not None])
        missing, missing_ends = np.zeros_like(known), drawn * ends
        for row, cluster in enumerate(clusters):
            scope = self._scopes.get(_name(model, cluster))
            if scope is not None:
                missing[row] += scope.missing
                missing_ends[row] += scope.missing_ends
        scope = self._scopes.get(_name(model, None))
        if scope is not None:
            share = (known[:, 0] / max(at_risk[0].learnt, 1.0))[:, None]
            missing += share * scope.missing
            missing_ends += share * scope.missing_ends
        return _ratios(known + drawn * factor, known + drawn, missing, missing_ends)

    def _names(self, standing: Standing) -> tuple[str, str]:
        return _everything(standing.model), _name(standing.model, self.cluster_of(standing.cluster))

    def _scopes_of(self, standing: Standing) -> tuple[_Scope, ...]:
        """The scopes that an answer counts in, all of which exist before one of them is changed."""
        return tuple(self._scopes.get_or_create(name) for name in self._names(standing))

    def _shares(self, at_risk: AtRisk) -> tuple[float, float]:
        """How far the learner's memory is filled, of the model and of the cluster; 1 where it is empty."""
        model = _filled(float(at_risk.learnt), self._settings.model_memory_answers)
        in_cluster = 0.0 if at_risk.cluster is None else float(at_risk.cluster[0])
        return model, _filled(in_cluster, self._settings.cluster_memory_answers) if at_risk.learnt else 1.0


def _filled(answers: float, memory_answers: float) -> float:
    return min(1.0, answers / memory_answers) if answers > 0.0 else 1.0


def _ratios(
    numerator: FloatArray, known: FloatArray, missing: FloatArray, missing_ends: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Answers at risk before, and missing ends, by the answers at risk with the missing ones; the first within bounds."""
    more = np.maximum(np.maximum(known + missing, 0.5 * known), 1e-12)
    return np.asarray((numerator / more).clip(_LEAST_FACTOR, _MOST_FACTOR)), np.asarray(missing_ends / more)


def _moved(mass: FloatArray, factor: FloatArray, ends: FloatArray) -> FloatArray:
    """The masses, a row for each, whose hazards are ``factor`` times those of others, and ``ends`` more."""
    survival = mass[:, ::-1].cumsum(axis=1)[:, ::-1]
    hazard = np.divide(mass, survival, out=np.ones_like(mass), where=survival > 0.0)
    return mass_from_hazard((hazard * factor + ends).clip(_LEAST_FACTOR * hazard, 1.0))


def _everything(model: str) -> str:
    return f"all/{model}"


def _name(model: str, cluster: int | None) -> str:
    """Of a cluster, or of the answers that are in none."""
    return f"{cluster}/{model}"
