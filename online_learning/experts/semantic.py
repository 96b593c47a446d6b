"""What an encoder makes of a prompt, as a correction of the distribution predicted from its n-grams.

The embedding comes late and not for every prompt, so that it is no expert among the others: it moves the prediction where
there is one, and leaves it alone where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from online_learning.distribution import FloatArray, LengthDistribution
from online_learning.experts.expert import bin_of
from online_learning.features.prompt_features import DIMENSIONS, IDENTITIES
from online_learning.length_learner import (
    ClusterChange,
    Drift,
    Features,
    Forecast,
    HasClusters,
    LengthLearner,
    Observation,
    Prompt,
    predict_all,
)
from online_learning.survival.hazard import mass_from_hazard

Embedding = NDArray[np.float32]
"""What an encoder makes of a prompt: a unit vector."""

_LISTED = float(1 << 14)
"""Listed n-grams are numbers from here on; the coordinates of an embedding, which follow them, are far below."""

_SURE = 1e-6
_CONSTANT = 0.3


def with_embedding(features: Features, embedding: Embedding) -> Features:
    """A prompt's features with its embedding behind them, in place of one that was there; it is brought to unit length.

    >>> features = np.zeros(DIMENSIONS + IDENTITIES, dtype=np.float32)
    >>> plain, embedding = apart(with_embedding(features, np.array([3.0, 4.0], dtype=np.float32)))
    >>> plain.size == features.size, [round(float(value), 1) for value in embedding]
    (True, [0.6, 0.8])
    """
    norm = max(float(np.linalg.norm(embedding)), _SURE)
    return np.concatenate((apart(features)[0], (embedding / norm).astype(np.float32)))


def apart(features: Features) -> tuple[Features, Embedding | None]:
    """A prompt's features without its embedding, and the embedding; None where there is none."""
    first = DIMENSIONS + IDENTITIES
    end = first + int(np.count_nonzero(features[first:] >= _LISTED))
    return (features, None) if features.size <= end else (features[:end], features[end:])


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticSettings:
    """Size and training of the correction."""

    buckets: int = 16
    """Points on the length grid at which log-odds are moved; between them linear."""
    rate: float = 0.06
    centre_prompts: float = 2_000.0
    """Memory of the mean embedding, which is taken from each: what all prompts share says nothing."""


class SemanticHead:
    """A linear map from embeddings to the log-odds of predicted hazards, learnt by Adagrad on the censored likelihood.

    It starts at nothing, so that a young one leaves predictions as they are. Each answer is used once.
    An embedding of another size than before resets it: the encoder was changed.
    Fails where the encoder is replaced by another of the same size: it must unlearn the old one.
    """

    def __init__(self, settings: SemanticSettings | None = None) -> None:
        self._settings = settings or SemanticSettings()
        self._begin(0)

    def refine(self, mass: FloatArray, embedding: Embedding) -> FloatArray:
        """The mass, moved by what the embedding says; the same where nothing was learnt of such ones."""
        if self._prompts == 0 or embedding.size != self._centre.size:
            return mass
        return mass_from_hazard(self._hazard(mass, self._input(embedding)))

    def learn(self, mass: FloatArray, embedding: Embedding, position: int, *, censored: bool) -> None:
        """Take an answer into account that ended in a bin, or has reached it; ``mass`` was predicted without this."""
        if embedding.size != self._centre.size:
            self._begin(embedding.size)
        inputs = self._input(embedding)
        slope = self._hazard(mass, inputs)
        slope[position:] = 0.0 if censored else np.append(slope[position] - 1.0, np.zeros(slope.size - position - 1))
        gradient = np.outer(inputs, _hats(slope.size, self._settings.buckets) @ slope)
        squares = self._squares + gradient**2
        self._weights -= self._settings.rate * gradient / np.sqrt(squares)
        self._squares[:] = squares
        self._prompts += 1
        self._centre += (embedding - self._centre) / min(self._prompts, self._settings.centre_prompts)

    def _begin(self, size: int) -> None:
        centre, weights = np.zeros(size), np.zeros((size + 1, self._settings.buckets))
        squares = np.full((size + 1, self._settings.buckets), 1e-8)
        self._prompts = 0
        self._centre: FloatArray = centre
        self._weights: FloatArray = weights
        self._squares: FloatArray = squares

    def _input(self, embedding: Embedding) -> FloatArray:
        centred = embedding - self._centre
        return np.append(centred / max(float(np.linalg.norm(centred)), _SURE), _CONSTANT)

    def _hazard(self, mass: FloatArray, inputs: FloatArray) -> FloatArray:
        survival = np.cumsum(mass[::-1])[::-1]
        before = np.clip(mass / np.maximum(survival, _SURE**2), _SURE, 1.0 - _SURE)
        moved = (inputs @ self._weights) @ _hats(mass.size, self._settings.buckets)
        odds = before / (1.0 - before) * np.exp(np.clip(moved, -_FARTHEST, _FARTHEST))
        return np.asarray(odds / (1.0 + odds))


_FARTHEST = 8.0
"""No log-odds are moved farther."""

_hats_known: dict[tuple[int, int], FloatArray] = {}


def _hats(bins: int, points: int) -> FloatArray:
    """Piecewise linear interpolation from points to bins, as a matrix; one for each grid that there is."""
    known = _hats_known.get((bins, points))
    if known is None:
        at = np.linspace(0.0, bins - 1.0, points)
        known = np.maximum(0.0, 1.0 - np.abs(np.arange(bins)[None, :] - at[:, None]) / (at[1] - at[0]))
        _hats_known[bins, points] = known
    return known


class SemanticLearner:
    """A learner whose predictions are corrected by embeddings, where prompts have them.

    The other learner never sees the embedding. Its prediction, as it is when the answer is learnt, is what the correction
    is learnt on top of.

    Args:
        inner: the learner that is corrected; prompts reach it without their embeddings.
        settings: of the correction.
    """

    def __init__(self, inner: LengthLearner, settings: SemanticSettings | None = None) -> None:
        self._inner = inner
        self._head = SemanticHead(settings)

    @property
    def on_cluster_changed(self) -> Callable[[ClusterChange], None]:
        """The other learner's, where it has clusters."""
        return self._inner.on_cluster_changed if isinstance(self._inner, HasClusters) else lambda _change: None

    @on_cluster_changed.setter
    def on_cluster_changed(self, handle: Callable[[ClusterChange], None]) -> None:
        if isinstance(self._inner, HasClusters):
            self._inner.on_cluster_changed = handle

    def features(self, prompt: Prompt) -> Features:
        """The other learner's, without an embedding: that comes later."""
        return self._inner.features(prompt)

    def prior(self, model: str) -> LengthDistribution:
        """The other learner's."""
        return self._inner.prior(model)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The other learner's distribution, corrected; the share of the mass that moved is the encoder's weight."""
        return self.predict_many([features], model)[0]

    def predict_many(self, features: Sequence[Features], model: str) -> list[Forecast]:
        """The other learner's distributions, corrected."""
        parts = [apart(prompt) for prompt in features]
        forecasts = predict_all(self._inner, [plain for plain, _ in parts], model)
        return [self._corrected(forecast, said) for forecast, (_, said) in zip(forecasts, parts, strict=True)]

    def _corrected(self, forecast: Forecast, embedding: Embedding | None) -> Forecast:
        if embedding is None:
            return forecast
        before = forecast.distribution
        mass = self._head.refine(before.mass, embedding)
        moved = min(1.0, 0.5 * float(np.abs(mass - before.mass).sum()))
        experts = {name: weight * (1.0 - moved) for name, weight in forecast.experts.items()}
        distribution = LengthDistribution(before.lengths, mass)
        return structs.replace(forecast, distribution=distribution, experts={**experts, "semantic": moved})

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the correction, where there is an embedding, then the other learner."""
        plain, embedding = apart(features)
        if embedding is not None:
            predicted = self._inner.predict_one(plain, model).distribution
            position = bin_of(predicted.lengths, observation)
            self._head.learn(predicted.mass, embedding, position, censored=observation.censored)
        return self._inner.learn_one(plain, model, observation)
