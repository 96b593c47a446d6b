"""The mixture of all experts: what the controller believes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from online_learning.distribution import FloatArray, IntArray, LengthDistribution, log_grid
from online_learning.experts.cluster import ClusterLengthRegressor
from online_learning.experts.expert import (
    Expert,
    ExpertPrediction,
    LearningResult,
    Query,
    SoloLearner,
    at_risk_of,
    bin_of,
    drifts_of,
    scored_prediction,
)
from online_learning.experts.neighbours import NeighbourExpert, NeighbourSettings
from online_learning.experts.network import HazardHead, HeadSettings, torch_is_installed
from online_learning.experts.quantile_bands import BandExpert, BandSettings
from online_learning.features.informative_ngrams import TellingWords
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import ClusterChange, Drift, Features, Forecast, LengthLearner, Observation, Prompt
from online_learning.mixture.pooling import Pool, PoolSettings
from online_learning.mixture.settings import LearnerSettings
from online_learning.survival.model_prior import ModelPrior


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """Settings of the experts and of how they are mixed."""

    common: LearnerSettings = field(default_factory=LearnerSettings)
    neighbours: NeighbourSettings = field(default_factory=NeighbourSettings)
    bands: BandSettings = field(default_factory=BandSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    judge_all: int = 1_000
    judge_every: int = 6
    """After the first ``judge_all`` answers every expert is judged by one in so many: judging costs most of learning."""
    correct_every: int = 2
    """The same for those that are heard most, from which beliefs are corrected."""


class _PriorExpert:
    """The global belief among the experts."""

    name = "global"

    def __init__(self, lengths: IntArray) -> None:
        self._lengths = lengths

    def predict(self, query: Query) -> ExpertPrediction:
        return ExpertPrediction(query.prior.mass, 0.0, 0.0)

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        position = bin_of(self._lengths, observation)
        return LearningResult(
            scored_prediction(query.prior.mass, position, censored=observation.censored) if judged else None
        )


def all_experts(lengths: IntArray, settings: MixtureSettings) -> list[Expert]:
    """Every expert there is; the network only where torch is installed."""
    common = settings.common
    experts: list[Expert] = [
        _PriorExpert(lengths),
        ClusterLengthRegressor(common.clusters, common.cluster_sketch, common.longest_tokens, common.max_models),
        NeighbourExpert(lengths, settings.neighbours, max_models=common.max_models),
        BandExpert(lengths, settings.bands),
    ]
    if torch_is_installed():
        experts.append(HazardHead(lengths, settings.head))
    return experts


def solo_learners(settings: MixtureSettings | None = None) -> dict[str, LengthLearner]:
    """Each expert alone over the global belief, by name, to be compared."""
    chosen = settings or MixtureSettings()
    experts = all_experts(log_grid(chosen.common.longest_tokens), chosen)
    return {expert.name: SoloLearner(expert, chosen.common.of_global) for expert in experts}


class MixtureLearner:
    """All experts in one calibrated belief; the learner that the controller uses.

    The weights of the experts differ by model and by prompt cluster, as far as the evidence goes. What the experts
    say is pooled on the common grid, where each has the honest tail of the prior, and corrected by how the pool's
    past beliefs turned out. `Pool` says how.
    """

    def __init__(self, settings: MixtureSettings | None = None, experts: list[Expert] | None = None) -> None:
        self._settings = settings or MixtureSettings()
        self._global = ModelPrior(self._settings.common.of_global)
        self._experts = experts or all_experts(self._global.lengths, self._settings)
        self._words = TellingWords()
        self._taught = 0
        self.on_cluster_changed: Callable[[ClusterChange], None] = lambda _change: None
        """Told of every cluster that comes or goes."""
        self._pool = Pool(len(self._experts), self._settings.pool)
        self._placer = next((expert for expert in self._experts if expert.name == ClusterLengthRegressor.name), None)

    @property
    def left_out(self) -> list[str]:
        """Why an expert is not here, each in a sentence with its remedy."""
        if any(expert.name == HazardHead.name for expert in self._experts):
            return []
        return [
            "the network needs torch: install sagesched-controller[neural]; lengths are predicted less well without"
        ]

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features."""
        return prompt_features(prompt)

    def prior(self, model: str) -> LengthDistribution:
        """The model's global belief."""
        return LengthDistribution(self._global.lengths, self._global.prior(model).mass)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The pooled and corrected belief, with each expert's weight in it."""
        query = Query(features, model, self._global.prior(model), self._words.of(features))
        place = None if self._placer is None else self._placer.predict(query)
        region = None if place is None else place.cluster
        weights = self._pool.heard(model, region)
        heard = [
            (weight, place if expert is self._placer and place is not None else expert.predict(query))
            for weight, expert in zip(weights, self._experts, strict=True)
            if weight > 0.0
        ]
        shares = weights[weights > 0.0]
        mass = self._pool.mix(np.stack([predicted.mass for _, predicted in heard]), shares, model)
        own = sum(weight * predicted.evidence for weight, predicted in heard)
        trust = sum(weight * predicted.trust for weight, predicted in heard)
        return Forecast(
            distribution=LengthDistribution(self._global.lengths, mass),
            cluster=region,
            evidence=float(own + (1.0 - trust) * self._global.evidence(model)),
            experts={expert.name: float(weight) for expert, weight in zip(self._experts, weights, strict=True)},
            at_risk=at_risk_of(self._global, model, place),
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach every expert, and credit each with what it had said; returns the drift that an expert found.

        Whichever expert found it, it is told of the prompt's cluster, whose beliefs it concerns;
        before there are clusters it is that of cluster 0, and may be the model's own.
        """
        query = Query(features, model, self._global.prior(model), self._words.of(features))
        young = self._taught < self._settings.judge_all
        credited = young or self._taught % self._settings.judge_every == 0
        corrected = credited or self._taught % self._settings.correct_every == 0
        self._taught += 1
        lessons, weights = self._teach_experts(query, observation, credited=credited, corrected=corrected)
        for change in (change for result in lessons for change in result.changes):
            self.on_cluster_changed(change)
        region = next((result.cluster for result in lessons if result.cluster is not None), None)
        if corrected:
            self._pool.learn(
                [result.scored_prediction for result in lessons], weights, model, region, credited=credited
            )
        forgetting = self._global.learn(model, observation)
        self._words.learn(features)
        found = next((result.drifts for result in lessons if result.drifts), [])
        if not found and region is None:
            found = drifts_of(model, 0, forgetting)
        return [replace(drift, cluster=region or 0) for drift in found]

    def _teach_experts(
        self, query: Query, observation: Observation, *, credited: bool, corrected: bool
    ) -> tuple[list[LearningResult], FloatArray]:
        """Teach all, the one first that says where the prompt belongs; judge all, those that are heard most, or none.

        Returns their lessons and the weights that they had.
        """
        place = None if self._placer is None else self._placer.learn(query, observation, judged=credited)
        weights = self._pool.weights(query.model, None if place is None else place.cluster)
        least = 0.0 if credited else self._settings.pool.least_telling_weight * float(weights.max())
        lessons = [
            place
            if expert is self._placer and place is not None
            else expert.learn(query, observation, judged=corrected and weight >= least)
            for weight, expert in zip(weights, self._experts, strict=True)
        ]
        return lessons, weights
