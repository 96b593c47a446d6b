"""The neural expert: a small network from n-grams to hazards over log-spaced length buckets, trained on the stream.

Needs torch, which is imported when the first network is made.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import ExpertPrediction, LearningResult, Query, bin_of, scored_prediction
from online_learning.features.prompt_features import DIMENSIONS, GRAM_ROWS, TEXT_DIMENSIONS
from online_learning.length_learner import Observation
from online_learning.survival.hazard import mass_from_hazard

if TYPE_CHECKING:
    import torch

_TINY = 1e-10


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
    """Examples as tensors, one row each."""

    rows: torch.Tensor
    """N-grams that took part, each once."""
    weights: torch.Tensor
    """Of each of them in each example; 0 where it has none."""
    scalars: torch.Tensor
    slots: torch.Tensor
    prior: torch.Tensor
    position: torch.Tensor
    finished: torch.Tensor


def torch_is_installed() -> bool:
    """Whether the network can be made here."""
    return importlib.util.find_spec("torch") is not None


class NetworkExpert:
    """Discrete-time survival analysis by gradient descent, one pass over the stream.

    The network adds to the log-odds of the prior's hazards, smoothly along the length grid, and starts at nothing:
    a young one is the prior, and the tail stays as honest as the prior's. The loss is the censored likelihood: an
    answer says that it outlived every bucket before its last, and, if it finished, that it ended there (Gensheimer
    and Narasimhan 2019). N-grams are embedded and summed (as in fastText, Joulin et al. 2017). Adagrad gives
    rare n-grams their own, larger steps (Duchi et al. 2011).

    Each answer is seen once, in batches, so that the chance given to it before is an honest one; and so that
    training is bounded: about 65 µs per answer. Deterministic on one machine: seeded, on one thread. Fails where
    lengths move faster than its small steps follow. Raises `ImportError` where torch is not installed.

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

    def predict(self, query: Query) -> ExpertPrediction:
        """The prior, moved by what the prompt's n-grams say."""
        evidence = min(self._taught, 5_000.0)
        trust = evidence / (evidence + self._settings.evidence_answers)
        return ExpertPrediction(self._mass(query, *query.ngrams), evidence, trust)

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Keep the answer for the next batch, and train when the batch is full."""
        position = bin_of(self._lengths, observation)
        rows, weights = query.ngrams
        mass = self._mass(query, rows, weights) if judged else None
        said = None if mass is None else scored_prediction(mass, position, censored=observation.censored)
        slot = (
            self._slots.setdefault(query.model, len(self._slots)) if self._has_room(query.model) else self._shared_slot
        )
        log_odds = query.prior.log_odds
        self._waiting.append(_Example(rows, weights, _scalars(query), slot, log_odds, position, observation.censored))
        self._taught += 1.0
        if len(self._waiting) >= self._settings.batch_answers:
            self._network.train(self._waiting)
            self._waiting.clear()
        return LearningResult(said)

    def _mass(self, query: Query, rows: NDArray[np.int64], weights: NDArray[np.float32]) -> FloatArray:
        moved = self._network.moved(rows, weights, _scalars(query), self._slots.get(query.model, self._shared_slot))
        odds = query.prior.odds * np.exp(moved)
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
    """Weights in torch for training; the same memory in numpy for predicting, where a call into torch costs more."""

    def __init__(self, bins: int, settings: NetworkSettings) -> None:
        import torch

        torch.set_num_threads(1)  # The network is small, and the order of a parallel sum would show.
        self._hats = _hats(bins, settings.buckets)
        self._smooth = torch.from_numpy(self._hats)
        self._bins = torch.arange(bins)[None, :]
        generator = torch.Generator().manual_seed(settings.seed)
        size = settings.embedding_dimensions
        self._embedding = 0.1 * torch.randn((GRAM_ROWS, size), generator=generator)
        self._scalar = 0.1 * torch.randn((DIMENSIONS - TEXT_DIMENSIONS, size), generator=generator)
        self._out = 0.05 * torch.randn((size, settings.buckets), generator=generator)
        self._bias = torch.zeros((settings.model_slots, settings.buckets))
        self._rest = [self._scalar, self._out, self._bias]
        self._squares = [torch.zeros_like(weights) for weights in (self._embedding, *self._rest)]
        self._rates = (settings.embedding_rate, settings.rate)
        views = (weights.numpy() for weights in (self._embedding, *self._rest))
        self._embedding_view, self._scalar_view, self._out_view, self._bias_view = views

    def moved(
        self, rows: NDArray[np.int64], weights: NDArray[np.float32], scalars: NDArray[np.float32], slot: int
    ) -> NDArray[np.float32]:
        """How far the prior's log-odds move in each bin."""
        hidden = weights @ self._embedding_view[rows] + scalars @ self._scalar_view
        return np.asarray((hidden @ self._out_view + self._bias_view[slot]) @ self._hats)

    def train(self, examples: list[_Example]) -> None:
        """One step of Adagrad down the gradient of the mean negative log-likelihood, in the rows that took part.

        The gradient is written out: automatic differentiation takes eight times as long for so small a network.
        """
        import torch

        with torch.no_grad():
            batch = _batch(examples)
            embedded = self._embedding.index_select(0, batch.rows)
            hidden = batch.weights @ embedded + batch.scalars @ self._scalar
            log_odds = batch.prior + (hidden @ self._out + self._bias[batch.slots]) @ self._smooth
            moved = self._slope(batch, log_odds) @ self._smooth.T
            sent_back = moved @ self._out.T
            self._embed(batch.rows, embedded, batch.weights.T @ sent_back)
            biases = torch.zeros_like(self._bias).index_add_(0, batch.slots, moved)
            gradients = (batch.scalars.T @ sent_back, hidden.T @ moved, biases)
            for weights, squares, gradient in zip(self._rest, self._squares[1:], gradients, strict=True):
                squares.addcmul_(gradient, gradient)
                weights.addcdiv_(gradient, squares.sqrt().add_(_TINY), value=-self._rates[1])

    def _embed(self, rows: torch.Tensor, embedded: torch.Tensor, gradient: torch.Tensor) -> None:
        squares = self._squares[0].index_select(0, rows).addcmul_(gradient, gradient)
        self._squares[0].index_copy_(0, rows, squares)
        step = embedded.addcdiv_(gradient, squares.sqrt_().add_(_TINY), value=-self._rates[0])
        self._embedding.index_copy_(0, rows, step)

    def _slope(self, batch: _Batch, log_odds: torch.Tensor) -> torch.Tensor:
        """Of the mean negative log-likelihood by the log-odds.

        An answer outlived every bin before its last, and ended there if it finished.
        """
        outlived = (self._bins < batch.position).float()
        ended = (self._bins == batch.position).float() * batch.finished
        return ((outlived + ended) * log_odds.sigmoid() - ended) / len(batch.position)


def _batch(examples: list[_Example]) -> _Batch:
    import torch

    rows, places = np.unique(np.concatenate([example.rows for example in examples]), return_inverse=True)
    weights = np.zeros((len(examples), rows.size), dtype=np.float32)
    owners = np.repeat(np.arange(len(examples)), [example.rows.size for example in examples])
    weights[owners, places] = np.concatenate([example.weights for example in examples])
    return _Batch(
        rows=torch.from_numpy(rows),
        weights=torch.from_numpy(weights),
        scalars=torch.from_numpy(np.stack([example.scalars for example in examples])),
        slots=torch.tensor([example.slot for example in examples]),
        prior=torch.from_numpy(np.stack([example.prior_log_odds for example in examples])),
        position=torch.tensor([example.position for example in examples])[:, None],
        finished=torch.tensor([0.0 if example.censored else 1.0 for example in examples])[:, None],
    )
