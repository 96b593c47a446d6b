"""How the experts' distributions become one: weights by prompt cluster, and a correction of the pool's calibration.

Both are learnt online and in layers: a cluster with few answers has its model's weights, a model those of all models;
a shape of distributions with few answers is corrected as all shapes are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from online_learning.distribution import FloatArray
from online_learning.experts.expert import ScoredPrediction
from online_learning.rows import dot, times
from online_learning.survival.per_model import ModelTable

_LEAST_CHANCE = 1e-9
_MOST_CREDIT = 20.0
_FARTHEST = 5.0
"""No expert's weight falls below e to the minus this of the best one's, so that it can come back."""

Shape: TypeAlias = tuple[int, int]
"""Where a distribution lies and how wide it is, in steps."""

_MEAN_BINS = 4.0
_DEVIATION_BINS = 2.0
_BINS: FloatArray = np.arange(1_024, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How fast weights and corrections follow."""

    rate: float = 0.05
    """Step of the weights with each answer, for all models and for one."""
    cluster_rate: float = 0.1
    """The same for a cluster."""
    memory_answers: float = 2_000.0
    """Answers after which a score's weight has fallen by a factor e, for all models and for one."""
    cluster_memory_answers: float = 300.0
    """The same for a cluster."""
    least_weight: float = 0.05
    """An expert with less than this share of the best one's weight is not asked."""
    least_correcting_weight: float = 0.25
    """The same where an answer only corrects: experts that are left out there err as the rest do."""
    bins: int = 10
    """Bins of the PIT histogram."""
    prior_answers: float = 400.0
    """Weight of no correction in a model's correction, in answers."""
    shape_prior_answers: float = 100.0
    """Weight of the model's correction in that of a shape, in answers."""
    shape_memory_answers: float = 1_000.0
    """Answers after which one's weight in a shape's histogram has fallen by a factor e."""
    max_models: int = 16
    """Models remembered; the one that was taught longest ago is forgotten first."""
    max_clusters: int = 1_024
    """Clusters remembered, over all models; the one that was taught longest ago is forgotten first."""


class Pool:
    """A linear pool of experts with weights by model and cluster, and the correction of its calibration.

    Weights follow the exponentiated gradient of the pool's own log score (Kivinen and Warmuth 1997), as a sum over
    all answers, the model's and the cluster's: they climb to the weights of the best *pool*, where Bayesian averaging
    would climb to the best single expert. Fails where an expert is best only now and then within a cluster.

    Args:
        experts: number of experts, the length of all weights.
        settings: rates, memories and bounds.
    """

    def __init__(self, experts: int, settings: PoolSettings) -> None:
        self._settings = settings
        self._experts = experts
        self._common: FloatArray = np.zeros(experts)
        self._models = ModelTable(self._no_scores, bound=settings.max_models)
        self._clusters = ModelTable(self._no_scores, bound=settings.max_clusters)
        self._corrections = ModelTable(self._no_correction, bound=settings.max_models)
        self._keep = 1.0 - 1.0 / settings.memory_answers
        self._cluster_keep = 1.0 - 1.0 / settings.cluster_memory_answers

    def weights(self, model: str, cluster: int | None) -> FloatArray:
        """Weight of each expert; they sum to 1."""
        scores = self._common.copy()
        for known in (self._models.get(model), self._clusters.get(_name(model, cluster))):
            if known is not None:
                scores += known
        scores -= scores.max()
        weights = np.exp(np.maximum(scores, -_FARTHEST, out=scores), out=scores)
        return np.asarray(weights / weights.sum())

    def significant_weights(self, model: str, clusters: Sequence[int | None]) -> FloatArray:
        """The weights for each of some prompts, without the small ones, which are 0: those experts need not be asked.

        Shape (prompts, experts).
        """
        known: dict[int | None, FloatArray] = {}
        for cluster in clusters:
            if cluster not in known:
                known[cluster] = self._significant(self.weights(model, cluster))
        return np.stack([known[cluster] for cluster in clusters])

    def mix(self, masses: FloatArray, weights: FloatArray, model: str) -> FloatArray:
        """The pooled and corrected masses, a row for each prompt.

        Args:
            masses: what the experts predict, shape (prompts, experts, bins).
            weights: shape (prompts, experts); the mass of an expert of weight 0 does not count.
            model: whose correction is applied.
        """
        asked = weights > 0.0
        if (asked == asked[0]).all():
            experts = asked[0].nonzero()[0]
            pooled = times(weights.take(experts, axis=1), masses.take(experts, axis=1))
        else:
            pooled = np.empty((len(weights), masses.shape[2]))
            # Those with the same experts together, so that the sum is over these alone.
            for experts in {row.tobytes(): row for row in asked}.values():
                rows = (asked == experts).all(axis=1).nonzero()[0]
                pooled[rows] = times(weights[np.ix_(rows, experts)], masses[np.ix_(rows, experts)])
        correction = self._corrections.get(model)
        return pooled if correction is None else correction.apply(pooled)

    def _significant(self, weights: FloatArray) -> FloatArray:
        weights[weights < self._settings.least_weight * weights.max()] = 0.0
        return np.asarray(weights / weights.sum())

    def learn(
        self,
        scored: list[ScoredPrediction | None],
        weights: FloatArray,
        model: str,
        cluster: int | None,
        *,
        credited: bool = True,
    ) -> None:
        """Learn the correction from the PIT of the pool with these weights, and credit the experts.

        Without credit not every expert need have been scored: the correction is learnt from those that were.
        """
        self._correct(weights, scored, model)
        if credited:
            self._credit(weights, [one.chance for one in scored if one is not None], model, cluster)

    def _correct(self, weights: FloatArray, scored: list[ScoredPrediction | None], model: str) -> None:
        least = self._settings.least_weight * float(weights.max())
        counted = [
            (weight, one) for weight, one in zip(weights.tolist(), scored, strict=True) if one and weight >= least
        ]
        if not counted:
            return
        total = sum(weight for weight, _ in counted)
        pooled = sum(weight / total * one.mass for weight, one in counted)
        below = sum(weight / total * one.below for weight, one in counted)
        chance = sum(weight / total * one.chance for weight, one in counted)
        self._corrections.get_or_create(model).learn(
            np.asarray(pooled), below, min(1.0, below + max(chance, _LEAST_CHANCE))
        )

    def _credit(self, weights: FloatArray, given: list[float], model: str, cluster: int | None) -> None:
        chances = np.maximum(given, _LEAST_CHANCE)
        credit = np.minimum(chances / float(weights @ chances), _MOST_CREDIT) - 1.0
        scores = self._models.get_or_create(model)
        of_cluster = None if cluster is None else self._clusters.get_or_create(_name(model, cluster))
        self._common = self._common * self._keep + self._settings.rate * credit
        scores *= self._keep
        scores += self._settings.rate * credit
        if of_cluster is not None:
            of_cluster *= self._cluster_keep
            of_cluster += self._settings.cluster_rate * credit

    def _no_scores(self) -> FloatArray:
        return np.zeros(self._experts)

    def _no_correction(self) -> Correction:
        return Correction(self._settings)


def _name(model: str, cluster: int | None) -> str:
    return f"{cluster}/{model}"


class Correction:
    """A map of one model's distribution functions that makes their PIT uniform, learnt from a decaying histogram.

    A linear pool of calibrated distributions is too wide (Gneiting and Ranjan 2013); this narrows it where it is.
    Distributions of one shape, about as long and about as wide, err alike: each shape is corrected apart, as far as
    its evidence goes. Measured against the same by prompt cluster: CRPS 1% lower, and families nearer to their
    coverage.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._edges: FloatArray = np.linspace(0.0, 1.0, settings.bins + 1)
        self._even: FloatArray = np.full(settings.bins, 1.0 / settings.bins)
        self._model: FloatArray = np.zeros(settings.bins)
        self._shapes: dict[Shape, FloatArray] = {}

    def apply(self, masses: FloatArray) -> FloatArray:
        """The corrected masses, a row for each."""
        cumulative = masses.cumsum(axis=1)
        cumulative /= cumulative[:, -1:].copy()
        corrected = np.empty_like(masses)
        for row, levels, where in zip(corrected, cumulative, shapes(masses), strict=True):
            row[:] = np.interp(levels, self._edges, self._knots(where))
        corrected[:, 1:] -= corrected[:, :-1].copy()
        return np.asarray(np.maximum(corrected, 0.0))

    def learn(self, mass: FloatArray, low: float, high: float) -> None:
        """Count an answer whose PIT under ``mass`` lies between ``low`` and ``high``, spread by the shares so far."""
        (where,) = shapes(mass[None, :])
        overlap = np.minimum(high, self._edges[1:]) - np.maximum(low, self._edges[:-1])
        spread = np.maximum(overlap, 1e-12) * self._shares(where)
        spread /= spread.sum()
        known = self._shapes.setdefault(where, np.zeros(self._settings.bins))
        self._model *= 1.0 - 1.0 / self._settings.memory_answers
        self._model += spread
        known *= 1.0 - 1.0 / self._settings.shape_memory_answers
        known += spread

    def _knots(self, where: Shape) -> FloatArray:
        """The corrected distribution function at the edges."""
        knots = np.concatenate(([0.0], self._shares(where).cumsum()))
        return np.asarray(knots / knots[-1])

    def _shares(self, where: Shape) -> FloatArray:
        """Share of the answers in each part of the PIT."""
        shares = _shrunk(self._model, self._even, self._settings.prior_answers)
        known = self._shapes.get(where)
        return shares if known is None else _shrunk(known, shares, self._settings.shape_prior_answers)


def shapes(masses: FloatArray) -> list[Shape]:
    """Where distributions lie on the grid and how wide they are, coarsely: their means and deviations in bins.

    >>> shapes(np.array([[0.0, 0.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0, 0.5]]))
    [(1, 0), (0, 1)]
    """
    bins = _BINS[: masses.shape[1]]
    means, squares = dot(masses, bins).tolist(), dot(masses, bins * bins).tolist()
    return [
        (int(mean / _MEAN_BINS), int(math.sqrt(max(0.0, square - mean**2)) / _DEVIATION_BINS))
        for mean, square in zip(means, squares, strict=True)
    ]


def _shrunk(counts: FloatArray, parent: FloatArray, prior: float) -> FloatArray:
    return np.asarray((counts + prior * parent) / (float(counts.sum()) + prior))
