"""What an expert is, and one expert alone as a learner.

An expert predicts the distribution of one answer's length from its prompt, given its prior, the distribution of all
of the model's answers.
When the answer is known it scores its prediction, where that is asked for, and learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from online_learning.distribution import FloatArray, IntArray, LengthDistribution
from online_learning.features.informative_ngrams import InformativeNgrams, WeightedNgrams
from online_learning.features.prompt_features import grams, prompt_features
from online_learning.length_learner import AtRisk, ClusterChange, Drift, Features, Forecast, Observation, Prompt
from online_learning.survival.length_sketch import Forgetting
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings, Prior

_LEAST_TRUST = 1e-4
_LEAST_STRENGTH = 3.0
"""Bounds of how far a cluster's distribution is taken to be shrunk to the model's."""


class Query(msgspec.Struct, frozen=True, eq=False):
    """A prompt to a model, with the model's prior."""

    features: Features
    model: str
    prior: Prior
    informative: WeightedNgrams | None = None

    @property
    def ngrams(self) -> WeightedNgrams:
        """The informative n-grams of the prompt, or all that are listed where none were chosen."""
        return grams(self.features) if self.informative is None else self.informative


class ExpertPredictions(msgspec.Struct, frozen=True, eq=False):
    """An expert's predicted distributions, a row for each prompt: mass on the common grid, and where it comes from."""

    masses: FloatArray
    """Shape (prompts, bins); each row sums to 1."""
    evidence: FloatArray
    """Effective number of the expert's own answers behind each; 0 when it has nothing to say beyond the prior."""
    trust: FloatArray
    """Share of its own evidence in each mass; the rest is the prior."""
    clusters: list[int] | None = None
    at_risk: FloatArray | None = None
    """The cluster's answers that reached each bin, shape (prompts, bins), where there are clusters."""

    @classmethod
    def of_prior(cls, queries: Sequence[Query], clusters: list[int] | None = None) -> ExpertPredictions:
        """The predictions of an expert that has nothing to say."""
        nothing = np.zeros(len(queries))
        return cls(np.tile(queries[0].prior.mass, (len(queries), 1)), nothing, nothing, clusters)


class ScoredPrediction(msgspec.Struct, frozen=True, eq=False):
    """How a predicted distribution turned out."""

    chance: float
    """Mass of what was observed: of its bin, or of all that may still come."""
    below: float
    """Mass of shorter answers."""
    mass: FloatArray
    """The predicted distribution, shape (bins,)."""


class LearningResult(msgspec.Struct, frozen=True, eq=False):
    """What came of teaching an expert an answer."""

    scored_prediction: ScoredPrediction | None
    """None where the answer was not to be judged."""
    drifts: list[Drift] = []
    cluster: int | None = None
    """The cluster that the prompt was in before."""
    changes: list[ClusterChange] = []
    """What became of clusters by it."""


class Expert(Protocol):
    """Predicts distributions on the common grid; its state depends on what it was taught alone, in that order."""

    name: str

    def predict(self, queries: Sequence[Query]) -> ExpertPredictions:
        """The distributions of the answers' lengths; changes nothing.

        ``queries`` are of one model, one or more. What is predicted of one does not depend on the others, to the last digit.
        """
        ...

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Learn from an answer; where it is to be judged, score the prediction first."""
        ...


def bin_of(lengths: IntArray, observation: Observation) -> int:
    """The bin that an answer ended in, or that an unfinished one has reached."""
    return min(int(lengths.searchsorted(observation.output_tokens)), lengths.size - 1)


def scored_prediction(mass: FloatArray, position: int, *, censored: bool) -> ScoredPrediction:
    """What a mass says of an answer in this bin."""
    below = float(np.add.reduce(mass[:position]))
    return ScoredPrediction(max(0.0, 1.0 - below) if censored else float(mass[position]), below, mass)


def chances(survivals: FloatArray, position: int, *, censored: bool) -> FloatArray:
    """Chance of an answer in this bin under several distributions, the survival of one in each row."""
    if censored or position + 1 >= survivals.shape[1]:
        return survivals[:, position]
    return np.asarray(survivals[:, position] - survivals[:, position + 1])


def drifts_of(model: str, cluster: int, forgetting: Forgetting | None) -> list[Drift]:
    """The drift that a sketch found, as the learner reports it."""
    if forgetting is None:
        return []
    return [
        Drift(
            model=model,
            cluster=cluster,
            before_mean_tokens=forgetting.before_mean_tokens,
            after_mean_tokens=forgetting.after_mean_tokens,
            forgotten=forgetting.forgotten,
        )
    ]


def at_risk_of(known: ModelPrior, model: str, prompts: int, in_clusters: ExpertPredictions | None) -> list[AtRisk]:
    """Learnt answers behind a model's distribution, and behind those of the prompts' clusters, where there are any."""
    of_model = known.at_risk(model)
    evidence = known.evidence(model)
    if in_clusters is None or in_clusters.at_risk is None:
        return [AtRisk(learnt=evidence, model=of_model)] * prompts
    strength = in_clusters.evidence * (1.0 / np.maximum(in_clusters.trust, _LEAST_TRUST) - 1.0)
    drawn = np.maximum(strength, _LEAST_STRENGTH)[:, None] * known.prior(model).survival
    return [
        AtRisk(learnt=evidence, model=of_model, cluster=at_risk, drawn=weight)
        for at_risk, weight in zip(in_clusters.at_risk, drawn, strict=True)
    ]


class SoloLearner:
    """One expert over the model's distribution, as a `LengthLearner`: to be compared, or used alone.

    Args:
        expert: the expert; it must use the grid that ``settings`` describe.
        settings: of the prior.
    """

    def __init__(self, expert: Expert, settings: ModelPriorSettings | None = None) -> None:
        self._global = ModelPrior(settings or ModelPriorSettings())
        self._expert = expert
        self._ngrams = InformativeNgrams()

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features."""
        return prompt_features(prompt)

    def prior(self, model: str) -> LengthDistribution:
        """The distribution of all of the model's answers."""
        return LengthDistribution(self._global.lengths, self._global.prior(model).mass)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The expert's distribution; the share that it does not trust of its own counts as the prior's."""
        prior = self._global.prior(model)
        predicted = self._expert.predict([Query(features, model, prior, self._ngrams.of(features))])
        trust = float(predicted.trust[0])
        return Forecast(
            distribution=LengthDistribution(self._global.lengths, predicted.masses[0]),
            cluster=None if predicted.clusters is None else predicted.clusters[0],
            evidence=float(predicted.evidence[0]) + (1.0 - trust) * self._global.evidence(model),
            experts={self._expert.name: trust, "global": 1.0 - trust},
            at_risk=at_risk_of(self._global, model, 1, predicted)[0],
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the expert, then the prior; a drift that the latter alone finds is that of cluster 0."""
        query = Query(features, model, self._global.prior(model), self._ngrams.of(features))
        result = self._expert.learn(query, observation, judged=True)
        self._ngrams.learn(features)
        forgetting = self._global.learn(model, observation)
        return result.drifts or drifts_of(model, 0, forgetting)
