"""How the experts' beliefs become one: weights by region of prompt space, and a correction of what still is off.

Both are learnt online and in layers: a region with few answers does as its model does, a model as all models.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from online_learning.distribution import FloatArray
from online_learning.expert import Verdict
from online_learning.models import ModelTable

_LEAST_CHANCE = 1e-9
_MOST_CREDIT = 20.0
_FARTHEST = 5.0
"""No expert's weight falls below e to the minus this of the best one's, so that it can come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How fast weights and corrections follow."""

    rate: float = 0.05
    """Step of the weights with each answer, at each layer."""
    region_rate: float = 0.1
    memory_answers: float = 2_000.0
    region_memory_answers: float = 300.0
    bins: int = 20
    prior_answers: float = 400.0
    """Weight of no correction in a model's correction, and of the model's in a region's."""
    max_models: int = 16
    max_regions: int = 1_024
    """Regions remembered of all models."""


class Pool:
    """A linear pool of experts whose weights depend on model and region, and the correction of what it believes.

    Weights follow the exponentiated gradient of the pool's own log score (Kivinen and Warmuth 1997), as a sum of what
    all answers, the model's and the region's say: they climb to the weights of the best *pool*, where Bayesian
    averaging would climb to the best single expert.
    """

    def __init__(self, experts: int, settings: PoolSettings) -> None:
        self._settings = settings
        self._experts = experts
        self._common: FloatArray = np.zeros(experts)
        self._models = ModelTable(self._no_scores, bound=settings.max_models)
        self._regions = ModelTable(self._no_scores, bound=settings.max_regions)
        self._corrections = ModelTable(self._no_correction, bound=settings.max_models)
        self._keep = 1.0 - 1.0 / settings.memory_answers
        self._region_keep = 1.0 - 1.0 / settings.region_memory_answers

    def weights(self, model: str, region: int | None) -> FloatArray:
        """Weight of each expert; they sum to 1."""
        scores = self._common.copy()
        for known in (self._models.known(model), self._regions.known(_name(model, region))):
            if known is not None:
                scores += known
        weights = np.exp(np.maximum(scores - scores.max(), -_FARTHEST))
        return np.asarray(weights / weights.sum())

    def mix(self, masses: FloatArray, weights: FloatArray, model: str, region: int | None) -> FloatArray:
        """The pooled and corrected mass of the experts' masses, one in each row."""
        pooled = weights @ masses
        correction = self._corrections.known(model)
        return pooled if correction is None else correction.apply(pooled, region)

    def learn(self, verdicts: list[Verdict], model: str, region: int | None) -> None:
        """Credit the experts with an answer, and place it in the pool's PIT."""
        weights = self.weights(model, region)
        chances = np.maximum(np.array([verdict.chance for verdict in verdicts]), _LEAST_CHANCE)
        chance = float(weights @ chances)
        below = float(weights @ np.array([verdict.below for verdict in verdicts]))
        self._corrections.taught(model).learn(below, min(1.0, below + chance), region)
        credit = np.minimum(chances / chance, _MOST_CREDIT) - 1.0
        self._common = self._common * self._keep + self._settings.rate * credit
        scores = self._models.taught(model)
        scores *= self._keep
        scores += self._settings.rate * credit
        if region is not None:
            scores = self._regions.taught(_name(model, region))
            scores *= self._region_keep
            scores += self._settings.region_rate * credit

    def _no_scores(self) -> FloatArray:
        return np.zeros(self._experts)

    def _no_correction(self) -> Correction:
        return Correction(self._settings)


def _name(model: str, region: int | None) -> str:
    return f"{region}/{model}"


class Correction:
    """A map of one model's distribution functions that makes their PIT uniform, learnt from a decaying histogram.

    A linear pool of calibrated beliefs is too wide (Gneiting and Ranjan 2013); this narrows it where it is, by region
    as far as the evidence goes.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._edges: FloatArray = np.linspace(0.0, 1.0, settings.bins + 1)
        self._even: FloatArray = np.full(settings.bins, 1.0 / settings.bins)
        self._model: FloatArray = np.zeros(settings.bins)
        self._regions: dict[Hashable, FloatArray] = {}

    def apply(self, mass: FloatArray, region: int | None) -> FloatArray:
        """The corrected mass."""
        cumulative = np.cumsum(mass)
        knots = np.concatenate(([0.0], np.cumsum(self._shares(region))))
        corrected = np.interp(cumulative / cumulative[-1], self._edges, knots / knots[-1])
        corrected[1:] -= corrected[:-1].copy()
        return np.asarray(np.maximum(corrected, 0.0))

    def learn(self, low: float, high: float, region: int | None) -> None:
        """Take an answer into account whose PIT lies between these, spread as answers are believed to be."""
        overlap = np.minimum(high, self._edges[1:]) - np.maximum(low, self._edges[:-1])
        spread = np.maximum(overlap, 1e-12) * self._shares(region)
        spread /= spread.sum()
        self._model *= 1.0 - 1.0 / self._settings.memory_answers
        self._model += spread
        if region is not None:
            known = self._regions.setdefault(region, np.zeros(self._settings.bins))
            known *= 1.0 - 1.0 / self._settings.region_memory_answers
            known += spread

    def _shares(self, region: int | None) -> FloatArray:
        """Share of the answers in each part of the PIT."""
        shares = _shrunk(self._model, self._even, self._settings.prior_answers)
        known = self._regions.get(region)
        return shares if known is None else _shrunk(known, shares, self._settings.prior_answers)


def _shrunk(counts: FloatArray, parent: FloatArray, prior: float) -> FloatArray:
    return np.asarray((counts + prior * parent) / (float(counts.sum()) + prior))
