"""How far thin evidence is shrunk to the common distribution, learnt from recent log scores."""

from __future__ import annotations

import numpy as np

from online_learning.distribution import FloatArray
from online_learning.rows import dot

STRENGTHS = (3.0, 20.0, 150.0, 30_000.0)
"""Candidate weights of the common distribution, in answers; the last makes evidence count for nothing."""

_LEAST_CHANCE = 1e-12


class ModelAverage:
    """Weights over candidate distributions by their recent log score: Bayesian model averaging that forgets.

    Slow after a change of what serves best, by about ``memory_answers``.
    """

    def __init__(self, candidates: int, memory_answers: float = 500.0) -> None:
        self._log_scores: FloatArray = np.zeros(candidates)
        self._weights: FloatArray = np.full(candidates, 1.0 / candidates)
        self._keep = 1.0 - 1.0 / memory_answers

    @property
    def weights(self) -> FloatArray:
        """Weight of each candidate; they sum to 1."""
        return self._weights

    def mix(self, candidates: FloatArray) -> FloatArray:
        """The weighted mean of each prompt's candidates, shape (prompts, candidates, bins); a row for each prompt."""
        return np.asarray(np.matmul(self.weights[None, None, :], candidates)[:, 0])

    def learn(self, chances: FloatArray) -> None:
        """Score the candidates by the chance that each gave to what was observed."""
        log_scores = self._log_scores * self._keep + np.log(np.maximum(chances, _LEAST_CHANCE))
        weights = np.exp(log_scores - log_scores.max())
        weights /= weights.sum()
        self._log_scores, self._weights = log_scores, weights


class Shrinkage(ModelAverage):
    """Weights over candidate strengths of shrinkage: empirical Bayes in the small.

    A strength has weight where it predicted the last answers well.
    """

    def __init__(self, memory_answers: float = 500.0) -> None:
        super().__init__(len(STRENGTHS), memory_answers)
        self.strengths: FloatArray = np.asarray(STRENGTHS)

    def trust(self, evidence: FloatArray) -> FloatArray:
        """Share of each prompt's evidence, rather than of the common distribution, in the mixture."""
        return dot(evidence[:, None] / (evidence[:, None] + self.strengths), self.weights)
