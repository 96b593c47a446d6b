"""What an expert is, and one expert alone as a learner.

An expert forms a belief about one answer from its prompt, given the model's belief about any answer, its prior.
When the answer is known it is told, says what chance it had given it, and learns.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np

from online_learning.distribution import FloatArray, IntArray, LengthDistribution
from online_learning.features.informative_ngrams import TellingWords, Words
from online_learning.features.prompt_features import grams, prompt_features
from online_learning.length_learner import AtRisk, ClusterChange, Drift, Features, Forecast, Observation, Prompt
from online_learning.survival.length_sketch import Forgetting
from online_learning.survival.model_prior import GlobalSettings, ModelPrior, Prior

_LEAST_TRUST = 1e-4
_LEAST_STRENGTH = 3.0
"""Bounds of how far a cluster's belief is taken to be drawn to the model's."""


class Query(msgspec.Struct, frozen=True, eq=False):
    """A prompt to a model, with the model's belief about any answer."""

    features: Features
    model: str
    prior: Prior
    telling: Words | None = None

    @property
    def words(self) -> Words:
        """The n-grams that tell the prompt apart, or all that are listed where nobody has chosen."""
        return grams(self.features) if self.telling is None else self.telling


class ExpertPrediction(msgspec.Struct, frozen=True, eq=False):
    """An expert's belief: mass on the common grid."""

    mass: FloatArray
    evidence: float
    """Effective number of the expert's own answers behind it; 0 when it has nothing to say beyond the prior."""
    trust: float
    """Share of its own evidence in the mass; the rest is the prior."""
    cluster: int | None = None
    at_risk: FloatArray | None = None
    """The cluster's answers that reached each bin, where there is one."""


class ScoredPrediction(msgspec.Struct, frozen=True, eq=False):
    """What a belief had said of an answer."""

    chance: float
    """Mass of what was observed: of its bin, or of all that may still come."""
    below: float
    """Mass of shorter answers."""
    mass: FloatArray
    """The belief."""


class LearningResult(msgspec.Struct, frozen=True, eq=False):
    """What an expert had believed before it learnt, and the drifts that the answer revealed."""

    scored_prediction: ScoredPrediction | None
    """None where the answer was not to be judged."""
    drifts: list[Drift] = []
    cluster: int | None = None
    """The cluster that the prompt was in before."""
    changes: list[ClusterChange] = []
    """What became of clusters by it."""


class Expert(Protocol):
    """Forms beliefs on the common grid; its state depends on the lessons alone, in their order."""

    name: str

    def predict(self, query: Query) -> ExpertPrediction:
        """The belief about the answer; changes nothing."""
        ...

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Take an answer into account; where it is to be judged, say what was believed of it before."""
        ...


def bin_of(lengths: IntArray, observation: Observation) -> int:
    """The bin that an answer ended in, or that an unfinished one has reached."""
    return min(int(lengths.searchsorted(observation.output_tokens)), lengths.size - 1)


def scored_prediction(mass: FloatArray, position: int, *, censored: bool) -> ScoredPrediction:
    """What a mass says of an answer in this bin."""
    below = float(np.add.reduce(mass[:position]))
    return ScoredPrediction(max(0.0, 1.0 - below) if censored else float(mass[position]), below, mass)


def chances(survivals: FloatArray, position: int, *, censored: bool) -> FloatArray:
    """Chance of an answer in this bin under several beliefs, the survival of one in each row."""
    if censored or position + 1 >= survivals.shape[1]:
        return survivals[:, position]
    return np.asarray(survivals[:, position] - survivals[:, position + 1])


def drifts_of(model: str, cluster: int, forgetting: Forgetting | None) -> list[Drift]:
    """The drift that a sketch found, in the words of the learner."""
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


def at_risk_of(known: ModelPrior, model: str, in_cluster: ExpertPrediction | None) -> AtRisk:
    """Learnt answers behind a model's belief, and behind that of a prompt's cluster, where there is one."""
    of_model = known.at_risk(model)
    evidence = known.evidence(model)
    if in_cluster is None or in_cluster.at_risk is None:
        return AtRisk(learnt=evidence, model=of_model)
    strength = in_cluster.evidence * (1.0 / max(in_cluster.trust, _LEAST_TRUST) - 1.0)
    drawn = max(strength, _LEAST_STRENGTH) * known.prior(model).survival
    return AtRisk(learnt=evidence, model=of_model, cluster=in_cluster.at_risk, drawn=drawn)


class SoloLearner:
    """One expert over the global belief, as a `LengthLearner`: to be compared, or used alone."""

    def __init__(self, expert: Expert, settings: GlobalSettings | None = None) -> None:
        self._global = ModelPrior(settings or GlobalSettings())
        self._expert = expert
        self._words = TellingWords()

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features."""
        return prompt_features(prompt)

    def prior(self, model: str) -> LengthDistribution:
        """The model's global belief."""
        return LengthDistribution(self._global.lengths, self._global.prior(model).mass)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The expert's belief; what it does not trust of its own is the global belief's."""
        prior = self._global.prior(model)
        predicted = self._expert.predict(Query(features, model, prior, self._words.of(features)))
        return Forecast(
            distribution=LengthDistribution(self._global.lengths, predicted.mass),
            cluster=predicted.cluster,
            evidence=predicted.evidence + (1.0 - predicted.trust) * self._global.evidence(model),
            experts={self._expert.name: predicted.trust, "global": 1.0 - predicted.trust},
            at_risk=at_risk_of(self._global, model, predicted),
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the expert, then the global belief; a drift that the latter alone finds is that of cluster 0."""
        query = Query(features, model, self._global.prior(model), self._words.of(features))
        result = self._expert.learn(query, observation, judged=True)
        self._words.learn(features)
        forgetting = self._global.learn(model, observation)
        return result.drifts or drifts_of(model, 0, forgetting)
