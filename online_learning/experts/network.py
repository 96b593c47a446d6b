"""The neural expert: a small network from n-grams to hazards over log-spaced length buckets, trained on the stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import ExpertPredictions, LearningResult, Query, bin_of, scored_prediction
from online_learning.features.prompt_features import DIMENSIONS, GRAM_ROWS, TEXT_DIMENSIONS
from online_learning.length_learner import Observation
from online_learning.rows import times
from online_learning.survival.hazard import mass_from_hazard

_TINY = np.float32(1e-10)
_LEAST_LOG_ODDS = np.float32(-80.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Size and training of the network."""

    embedding_dimensions: int = 24
    buckets: int = 16
    """Points on the length grid, evenly spaced, at which the network moves the prior's log-odds; between them linear."""
    model_slots: int = 16
    """Models that have a bias of their own; those beyond share one by hash of order."""
    batch_answers: int = 16
    """Answers gathered for one step of training: each is used once, for what is used again is learnt by heart."""
    embedding_rate: float = 0.1
    rate: float = 0.02
    evidence_answers: float = 50.0
    """Answers after which the network counts as half trusted; says nothing about the mass, which starts at the prior."""
    seed: int = 0


Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    scalars: NDArray[np.float32]
    slot: int
    prior_log_odds: NDArray[np.float32]
    position: int
    censored: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Examples as arrays, one row each."""

    rows: NDArray[np.int64]
    """N-grams that took part, each once."""
    weights: Weights
    """Of each of them in each example; 0 where it has none."""
    scalars: Weights
    slots: NDArray[np.int64]
    prior: Weights
    position: NDArray[np.int64]
    finished: NDArray[np.bool_]


class NetworkExpert:
    """Discrete-time survival analysis by gradient descent, one pass over the stream.

    The network adds to the log-odds of the prior's hazards, smoothly along the length grid, and starts at nothing:
    a young one is the prior, and the tail stays as honest as the prior's. The loss is the censored likelihood: an
    answer says that it outlived every bucket before its last, and, if it finished, that it ended there (Gensheimer
    and Narasimhan 2019). N-grams are embedded and summed (as in fastText, Joulin et al. 2017). Adagrad gives
    rare n-grams their own, larger steps (Duchi et al. 2011).

    Each answer is seen once, in batches, so that the chance given to it before is an honest one; and so that
    training is bounded: about 50 µs per answer. Deterministic on one machine: seeded, on one thread. Fails where
    lengths move faster than its small steps follow.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: size and training of the network.
    """

    name = "network"

    def __init__(self, lengths: IntArray, settings: NetworkSettings | None = None) -> None:
        self._settings = settings or NetworkSettings()
        self._lengths = lengths
        self._network = _Network(lengths.size, self._settings)
        self._slots: dict[str, int] = {}
        self._shared_slot = self._settings.model_slots - 1
        self._waiting: list[_Example] = []
        self._taught = 0.0

    def predict(self, queries: Sequence[Query]) -> ExpertPredictions:
        """The prior, moved by what the prompts' n-grams say."""
        evidence = min(self._taught, 5_000.0)
        trust = evidence / (evidence + self._settings.evidence_answers)
        return ExpertPredictions(self._masses(queries), np.full(len(queries), evidence), np.full(len(queries), trust))

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Keep the answer for the next batch, and train when the batch is full."""
        position = bin_of(self._lengths, observation)
        rows, weights = query.ngrams
        said = None
        if judged:
            said = scored_prediction(self._masses([query])[0], position, censored=observation.censored)
        slot = (
            self._slots.setdefault(query.model, len(self._slots)) if self._has_room(query.model) else self._shared_slot
        )
        log_odds = query.prior.log_odds
        self._waiting.append(_Example(rows, weights, _scalars(query), slot, log_odds, position, observation.censored))
        self._taught += 1.0
        if len(self._waiting) >= self._settings.batch_answers:
            batch, self._waiting = self._waiting, []
            self._network.train(batch)
        return LearningResult(said)

    def _masses(self, queries: Sequence[Query]) -> FloatArray:
        slot = self._slots.get(queries[0].model, self._shared_slot)
        odds = queries[0].prior.odds * np.exp(self._network.moved(queries, slot))
        return mass_from_hazard(odds / (1.0 + odds))

    def _has_room(self, model: str) -> bool:
        return model in self._slots or len(self._slots) < self._settings.model_slots - 1


def _scalars(query: Query) -> NDArray[np.float32]:
    return query.features[TEXT_DIMENSIONS:DIMENSIONS]


def _hats(bins: int, points: int) -> NDArray[np.float32]:
    """Piecewise linear interpolation from points to bins, as a matrix.

    >>> _hats(5, 3).tolist()
    [[1.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5, 1.0]]
    """
    at = np.linspace(0.0, bins - 1.0, points)
    distance = np.abs(np.arange(bins)[None, :] - at[:, None]) / (at[1] - at[0])
    return np.asarray(np.maximum(0.0, 1.0 - distance), dtype=np.float32)


class _Network:
    """The weights, and the squares of the gradients that each has followed."""

    def __init__(self, bins: int, settings: NetworkSettings) -> None:
        threadpool_limits(limits=1, user_api="blas")  # The order of a parallel sum would show.
        size = settings.embedding_dimensions
        generator = np.random.RandomState(settings.seed)
        self._hats = _hats(bins, settings.buckets)
        self._bins = np.arange(bins)
        self._embedding = np.float32(0.1) * _normal(generator, GRAM_ROWS, size)
        self._scalar = np.float32(0.1) * _normal(generator, DIMENSIONS - TEXT_DIMENSIONS, size)
        self._out = np.float32(0.05) * _normal(generator, size, settings.buckets)
        self._bias: Weights = np.zeros((settings.model_slots, settings.buckets), dtype=np.float32)
        self._embedding_squares = np.zeros_like(self._embedding)
        self._rest = [
            (weights, np.zeros_like(weights), np.float32(settings.rate))
            for weights in (self._scalar, self._out, self._bias)
        ]
        self._embedding_rate = np.float32(settings.embedding_rate)

    def moved(self, queries: Sequence[Query], slot: int) -> Weights:
        """How far the prior's log-odds move in each bin, a row for each prompt."""
        hidden = np.empty((len(queries), self._out.shape[0]), dtype=np.float32)
        for row, query in zip(hidden, queries, strict=True):
            rows, weights = query.ngrams
            np.matmul(weights, self._embedding[rows], out=row)
        hidden += times(np.stack([_scalars(query) for query in queries]), self._scalar)
        return times(times(hidden, self._out) + self._bias[slot], self._hats)

    def train(self, examples: list[_Example]) -> None:
        """One step of Adagrad down the gradient of the mean negative log-likelihood, in the rows that took part.

        All steps are computed before the first weight is changed.
        """
        batch = _batch(examples)
        embedded = self._embedding[batch.rows]
        hidden = batch.weights @ embedded + batch.scalars @ self._scalar
        log_odds = batch.prior + (hidden @ self._out + self._bias[batch.slots]) @ self._hats
        moved = self._slope(batch, log_odds) @ self._hats.T
        sent_back = moved @ self._out.T
        biases = np.zeros_like(self._bias)
        np.add.at(biases, batch.slots, moved)
        gradients = (batch.scalars.T @ sent_back, hidden.T @ moved, biases)
        gradient = batch.weights.T @ sent_back
        embedded_squares = self._embedding_squares[batch.rows] + gradient * gradient
        embedded = embedded - self._embedding_rate * gradient / (np.sqrt(embedded_squares) + _TINY)
        grown = [squares + slope * slope for (_, squares, _), slope in zip(self._rest, gradients, strict=True)]
        steps = [
            rate * slope / (np.sqrt(squares) + _TINY)
            for (_, _, rate), squares, slope in zip(self._rest, grown, gradients, strict=True)
        ]
        self._embedding_squares[batch.rows], self._embedding[batch.rows] = embedded_squares, embedded
        for (weights, before, _), squares, step in zip(self._rest, grown, steps, strict=True):
            before[:], weights[:] = squares, weights - step

    def _slope(self, batch: _Batch, log_odds: Weights) -> Weights:
        """Of the mean negative log-likelihood by the log-odds.

        An answer outlived every bin before its last, and ended there if it finished.
        """
        chance = np.float32(1.0) / (np.float32(1.0) + np.exp(-np.maximum(log_odds, _LEAST_LOG_ODDS)))
        ended = (self._bins == batch.position) & batch.finished
        alive = (self._bins < batch.position) | ended
        return np.asarray((alive * chance - ended) / np.float32(len(batch.position)), dtype=np.float32)


def _batch(examples: list[_Example]) -> _Batch:
    rows, places = np.unique(np.concatenate([example.rows for example in examples]), return_inverse=True)
    weights = np.zeros((len(examples), rows.size), dtype=np.float32)
    owners = np.repeat(np.arange(len(examples)), [example.rows.size for example in examples])
    weights[owners, places] = np.concatenate([example.weights for example in examples])
    return _Batch(
        rows=rows,
        weights=weights,
        scalars=np.stack([example.scalars for example in examples]),
        slots=np.array([example.slot for example in examples]),
        prior=np.stack([example.prior_log_odds for example in examples]),
        position=np.array([example.position for example in examples])[:, None],
        finished=np.array([not example.censored for example in examples])[:, None],
    )


_BLOCK = 16
"""Uniform draws that become as many normal ones together: the first half their radii, the second their angles."""


def _normal(generator: np.random.RandomState, rows: int, columns: int) -> Weights:
    """Standard normal draws (Box and Muller 1958), the same as torch's with this seed: networks of before began with those.

    >>> _normal(np.random.RandomState(0), 3, 24)[0, :3].astype(float).round(4).tolist()
    [-1.1258, -1.1524, -0.2506]
    """
    size = rows * columns
    uniform = _uniform(generator, size)
    whole = size - size % _BLOCK
    draws = np.empty(size, dtype=np.float32)
    draws[:whole] = _box_muller(uniform[:whole])
    if whole < size:
        draws[-_BLOCK:] = _box_muller(_uniform(generator, _BLOCK))
    return draws.reshape(rows, columns)


def _uniform(generator: np.random.RandomState, count: int) -> FloatArray:
    return np.asarray(generator.randint(0, 1 << 24, count, dtype=np.uint32) / float(1 << 24))


def _box_muller(uniform: FloatArray) -> FloatArray:
    radii, angles = np.split(uniform.reshape(-1, _BLOCK), 2, axis=1)
    radii = np.sqrt(-2.0 * np.log1p(-radii))
    draws = np.concatenate((radii * np.cos(math.tau * angles), radii * np.sin(math.tau * angles)), axis=1)
    return np.asarray(draws.ravel())
