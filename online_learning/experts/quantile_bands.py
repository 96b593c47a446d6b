"""The expert of bands: how a prompt's n-grams shift chance between the quantile bands of the model's own lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import ExpertPredictions, LearningResult, Query, bin_of, scored_prediction
from online_learning.features.prompt_features import DIMENSIONS, GRAM_ROWS, TEXT_DIMENSIONS
from online_learning.length_learner import Observation
from online_learning.rows import times
from online_learning.survival.model_prior import Prior

_MOST_EVIDENCE = 5_000.0
_LEAST_SHARE = 1e-9
_MOST_PRIORS = 32
"""Priors whose bands are kept: one for each model, of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileBandSettings:
    """Size and learning of the regression."""

    bands: int = 16
    rate: float = 0.4
    scalar_rate: float = 0.05
    first_square: float = 0.01
    """What the sum of squared gradients starts at: it keeps an n-gram's first steps small."""
    evidence_answers: float = 50.0
    """Answers after which it counts as half trusted; says nothing about the mass, which starts at the prior."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bands:
    """A prior cut into overlapping bands: its mass is that of all bands, each by its share."""

    masses: FloatArray
    """Mass of each band on the grid, one row each, each summing to 1."""
    log_shares: NDArray[np.float32]


class QuantileBandExpert:
    """Multinomial regression from n-grams to overlapping quantile bands of the prior, one step for each answer.

    Within a band lengths are spread as the prior spreads them, so that its tail stays as honest; and as bands are
    quantiles of the model's own lengths, what is learnt of words holds for all models. An unfinished answer is
    spread over the bands as it is predicted to go on. Convex, with steps by Adagrad (Duchi et al. 2011): rare n-grams
    have larger ones. Fails where what tells lengths is not in single n-grams; on prompts that come again and again
    it grows too sure, which the mixture sees.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: number of bands and steps of the regression.
    """

    name = "bands"

    def __init__(self, lengths: IntArray, settings: QuantileBandSettings | None = None) -> None:
        self._settings = settings or QuantileBandSettings()
        self._lengths = lengths
        self._weights = _Adagrad(GRAM_ROWS, self._settings.bands, self._settings.rate, self._settings.first_square)
        scalars = DIMENSIONS - TEXT_DIMENSIONS + 1
        self._scalars = _Adagrad(scalars, self._settings.bands, self._settings.scalar_rate, self._settings.first_square)
        self._cut: dict[Prior, _Bands] = {}
        self._taught = 0.0

    def predict(self, queries: Sequence[Query]) -> ExpertPredictions:
        """The prior, its bands weighed by what the prompts' n-grams say."""
        bands = self._bands(queries[0].prior)
        masses = times(self._chances(bands, queries, _scalars(queries)), bands.masses)
        trust = self._taught / (self._taught + self._settings.evidence_answers)
        return ExpertPredictions(masses, np.full(len(queries), self._taught), np.full(len(queries), trust))

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """One step up the gradient of the answer's log-likelihood."""
        bands = self._bands(query.prior)
        scalars = _scalars([query])
        (chances,) = self._chances(bands, [query], scalars)
        position = bin_of(self._lengths, observation)
        masses = bands.masses
        said = scored_prediction(chances @ masses, position, censored=observation.censored) if judged else None
        likelihood = masses[:, position:].sum(axis=1) if observation.censored else masses[:, position]
        posterior = chances * (likelihood + _LEAST_SHARE)
        direction = (posterior / posterior.sum() - chances).astype(np.float32)
        rows, weights = query.ngrams
        climbs = (
            self._weights.climb(rows, weights, direction),
            self._scalars.climb(slice(None), scalars[0], direction),
        )
        for apply in climbs:
            apply()
        self._taught = min(self._taught + 1.0, _MOST_EVIDENCE)
        return LearningResult(said)

    def _chances(self, bands: _Bands, queries: Sequence[Query], scalars: NDArray[np.float32]) -> FloatArray:
        """Chance of each band, a row for each prompt."""
        said = np.empty((len(queries), self._settings.bands), dtype=np.float32)
        for row, query in zip(said, queries, strict=True):
            rows, weights = query.ngrams
            np.matmul(weights, self._weights.values[rows], out=row)
        scores = bands.log_shares + said + times(scalars, self._scalars.values)
        chances = np.exp((scores - np.maximum.reduce(scores, axis=1, keepdims=True)).astype(np.float64))
        return np.asarray(chances / np.add.reduce(chances, axis=1, keepdims=True))

    def _bands(self, prior: Prior) -> _Bands:
        known = self._cut.get(prior)
        if known is None:
            if len(self._cut) >= _MOST_PRIORS:
                self._cut.clear()
            known = self._cut[prior] = _cut(prior.mass, self._settings.bands)
        return known


def _scalars(queries: Sequence[Query]) -> NDArray[np.float32]:
    """What the requests say about themselves, and a constant, a row for each."""
    scalars: NDArray[np.float32] = np.ones((len(queries), DIMENSIONS - TEXT_DIMENSIONS + 1), dtype=np.float32)
    for row, query in zip(scalars, queries, strict=True):
        row[:-1] = query.features[TEXT_DIMENSIONS:DIMENSIONS]
    return scalars


def _cut(mass: FloatArray, bands: int) -> _Bands:
    """Bands whose weight rises and falls linearly with the prior's distribution function.

    >>> cut = _cut(np.full(4, 0.25), 2)
    >>> cut.masses.round(3).tolist()
    [[0.438, 0.312, 0.188, 0.062], [0.062, 0.188, 0.312, 0.438]]
    """
    middle = np.cumsum(mass) - 0.5 * mass
    distance = np.abs(middle * (bands - 1) - np.arange(bands)[:, None])
    masses = np.maximum(0.0, 1.0 - distance) * mass
    shares = masses.sum(axis=1)
    empty = shares < _LEAST_SHARE
    masses[empty] = mass  # A prior with large atoms may have bands that no length falls into.
    shares[empty] = _LEAST_SHARE
    masses /= masses.sum(axis=1, keepdims=True)
    return _Bands(masses, np.log(shares / shares.sum()).astype(np.float32))


class _Adagrad:
    """A matrix of weights, and the steps that each has made."""

    def __init__(self, rows: int, columns: int, rate: float, first_square: float) -> None:
        self.values: NDArray[np.float32] = np.zeros((rows, columns), dtype=np.float32)
        self._squares: NDArray[np.float32] = np.full((rows, columns), first_square, dtype=np.float32)
        self._rate = np.float32(rate)

    def climb(
        self, rows: NDArray[np.int64] | slice, inputs: NDArray[np.float32], direction: NDArray[np.float32]
    ) -> Callable[[], None]:
        """The move of the rows along input times direction: nothing has moved until it is called."""
        gradient = inputs[:, None] * direction
        squares = self._squares[rows] + gradient**2
        step = self._rate * gradient / np.sqrt(squares)

        def apply() -> None:
            self._squares[rows] = squares
            self.values[rows] += step

        return apply
