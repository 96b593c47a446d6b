"""How the experts' beliefs become one: weights by region of prompt space, and a correction of what still is off.

Both are learnt online and hierarchically: a region with few answers does as its model does.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from online_learning.distribution import FloatArray
from online_learning.expert import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How fast weights and corrections follow, in answers."""

    memory_answers: float = 1_000.0
    region_memory_answers: float = 300.0
    region_prior_answers: float = 50.0
    """Weight of the model's weights in a region's."""
    even_answers: float = 10.0
    """Weight of even weights in the model's; keeps every expert in the game."""
    bins: int = 20
    correction_prior_answers: float = 100.0
    """Weight of no correction in the model's correction, and of the model's in a region's."""


class _Hierarchy:
    """Decaying counts for a model and for each of its regions, shrunk to the model's."""

    def __init__(self, size: int, *, memory: float, region_memory: float, prior: float, region_prior: float) -> None:
        self._even: FloatArray = np.full(size, 1.0 / size)
        self._keep = 1.0 - 1.0 / memory
        self._region_keep = 1.0 - 1.0 / region_memory
        self._prior = prior
        self._region_prior = region_prior
        self._model: FloatArray = np.zeros(size)
        self._regions: dict[Hashable, FloatArray] = {}

    def shares(self, region: Hashable) -> FloatArray:
        """Share of each place in a region; they sum to 1."""
        shares = _shrunk(self._model, self._even, self._prior)
        counts = self._regions.get(region)
        return shares if counts is None else _shrunk(counts, shares, self._region_prior)

    def add(self, region: Hashable, portions: FloatArray) -> None:
        """Count one answer, in portions that sum to 1."""
        self._model = self._model * self._keep + portions
        if region is not None:
            counts = self._regions.get(region)
            self._regions[region] = portions if counts is None else counts * self._region_keep + portions


def _shrunk(counts: FloatArray, parent: FloatArray, prior: float) -> FloatArray:
    return np.asarray((counts + prior * parent) / (float(counts.sum()) + prior))


class Pool:
    """One model's weights of the experts in a linear pool, and the correction of the pool.

    Weights are those of online expectation maximisation: each answer is credited to the experts by the share that
    each had in the chance given to it, so that the weights climb to those with the best log score of the *pool*,
    where Bayesian averaging would climb to the best single expert.

    The correction is a histogram of the pool's PIT (Gneiting and Ranjan 2013 on why a linear pool of calibrated
    beliefs is too wide), used as a map of its distribution function.
    """

    def __init__(self, experts: int, settings: PoolSettings) -> None:
        self._weights = _Hierarchy(
            experts,
            memory=settings.memory_answers,
            region_memory=settings.region_memory_answers,
            prior=settings.even_answers,
            region_prior=settings.region_prior_answers,
        )
        self._correction = _Hierarchy(
            settings.bins,
            memory=settings.memory_answers,
            region_memory=settings.region_memory_answers,
            prior=settings.correction_prior_answers,
            region_prior=settings.correction_prior_answers,
        )
        self._edges: FloatArray = np.linspace(0.0, 1.0, settings.bins + 1)

    def weights(self, region: Hashable) -> FloatArray:
        """Weight of each expert; they sum to 1."""
        return self._weights.shares(region)

    def mix(self, masses: FloatArray, region: Hashable) -> FloatArray:
        """The pooled and corrected mass of the experts' masses, one in each row."""
        cumulative = np.cumsum(self.weights(region) @ masses)
        knots = np.concatenate(([0.0], np.cumsum(self._correction.shares(region))))
        corrected = np.interp(cumulative / cumulative[-1], self._edges, knots / knots[-1])
        return np.maximum(np.diff(corrected, prepend=0.0), 0.0)

    def learn(self, verdicts: list[Verdict], region: Hashable) -> None:
        """Credit the experts with an answer, and place it in the pool's PIT."""
        weights = self.weights(region)
        chances = np.array([verdict.chance for verdict in verdicts])
        below = float(weights @ np.array([verdict.below for verdict in verdicts]))
        credit = weights * np.maximum(chances, 1e-12)
        chance = float(credit.sum())
        self._correction.add(region, self._placed(below, min(1.0, below + chance), region))
        self._weights.add(region, credit / chance)

    def _placed(self, low: float, high: float, region: Hashable) -> FloatArray:
        """An answer spread over the PIT that it may have, as the correction believes it to be spread."""
        overlap = np.clip(np.minimum(high, self._edges[1:]) - np.maximum(low, self._edges[:-1]), 1e-12, None)
        spread = overlap * self._correction.shares(region)
        return np.asarray(spread / spread.sum())
