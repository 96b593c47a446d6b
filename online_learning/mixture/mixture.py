"""The mixture of all experts: the learner that the controller predicts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from online_learning.distribution import FloatArray, IntArray, LengthDistribution, log_grid
from online_learning.experts.client_says import ClientSaysExpert, ClientSettings
from online_learning.experts.cluster import ClusterLengthRegressor
from online_learning.experts.expert import (
    Expert,
    ExpertPredictions,
    LearningResult,
    Query,
    SoloLearner,
    at_risk_of,
    bin_of,
    drifts_of,
    scored_prediction,
)
from online_learning.experts.neighbours import NeighbourExpert, NeighbourSettings
from online_learning.experts.network import NetworkExpert, NetworkSettings
from online_learning.experts.quantile_bands import QuantileBandExpert, QuantileBandSettings
from online_learning.experts.session import SessionExpert, SessionSettings
from online_learning.experts.specialist import Specialist
from online_learning.features.informative_ngrams import InformativeNgrams
from online_learning.features.prompt_features import has_hints, hints, prompt_features
from online_learning.length_learner import ClusterChange, Drift, Features, Forecast, LengthLearner, Observation, Prompt
from online_learning.mixture.pooling import Pool, PoolSettings
from online_learning.mixture.settings import LearnerSettings
from online_learning.mixture.specialists import Specialists
from online_learning.survival.model_prior import ModelPrior


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """Settings of the experts and of how they are mixed."""

    common: LearnerSettings = field(default_factory=LearnerSettings)
    neighbours: NeighbourSettings = field(default_factory=NeighbourSettings)
    bands: QuantileBandSettings = field(default_factory=QuantileBandSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    client_says: ClientSettings = field(default_factory=ClientSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    judge_all: int = 1_000
    """Answers, the first, on each of which every expert is scored."""
    judge_every: int = 6
    """Answers for each one that every expert is scored on after these: scoring costs most of learning."""
    correct_every: int = 2
    """Answers for each one that the experts of most weight are scored on, for the pool's correction."""


class _PriorExpert:
    """The model's distribution among the experts."""

    name = "global"

    def __init__(self, lengths: IntArray) -> None:
        self._lengths = lengths

    def predict(self, queries: Sequence[Query]) -> ExpertPredictions:
        return ExpertPredictions.of_prior(queries)

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        position = bin_of(self._lengths, observation)
        return LearningResult(
            scored_prediction(query.prior.mass, position, censored=observation.censored) if judged else None
        )


def all_experts(lengths: IntArray, settings: MixtureSettings) -> list[Expert]:
    """Every expert there is."""
    common = settings.common
    return [
        _PriorExpert(lengths),
        ClusterLengthRegressor(common.clusters, common.cluster_sketch, common.longest_tokens, common.max_models),
        NeighbourExpert(lengths, settings.neighbours, max_models=common.max_models),
        QuantileBandExpert(lengths, settings.bands),
        NetworkExpert(lengths, settings.network),
    ]


def all_specialists(lengths: IntArray, settings: MixtureSettings) -> list[Specialist]:
    """Every expert that speaks only of requests with hints, in the order in which they are mixed in."""
    models = settings.common.max_models
    return [
        ClientSaysExpert(lengths, settings.client_says, max_models=models),
        SessionExpert(lengths, settings.session, max_models=models),
    ]


def solo_learners(settings: MixtureSettings | None = None) -> dict[str, LengthLearner]:
    """Each expert alone over the model's distribution, by name, to be compared."""
    chosen = settings or MixtureSettings()
    experts = all_experts(log_grid(chosen.common.longest_tokens), chosen)
    return {expert.name: SoloLearner(expert, chosen.common.model_prior) for expert in experts}


class MixtureLearner:
    """All experts in one calibrated distribution; the learner that the controller uses.

    The weights of the experts differ by model and by prompt cluster, as far as the evidence goes. Their predictions
    are pooled on the common grid, where each has the tail of the prior, and corrected by how the pool's past
    predictions turned out. `Pool` says how. Fails where all experts fail: it is a weighted mean of them.

    Args:
        settings: of all experts and of the pool.
        experts: in place of all that there are; they must use the grid that ``settings.common`` describes.
        specialists: the same for those that speak only of requests with hints.
    """

    def __init__(
        self,
        settings: MixtureSettings | None = None,
        experts: list[Expert] | None = None,
        specialists: list[Specialist] | None = None,
    ) -> None:
        self._settings = settings or MixtureSettings()
        self._global = ModelPrior(self._settings.common.model_prior)
        self._experts = experts or all_experts(self._global.lengths, self._settings)
        self._ngrams = InformativeNgrams()
        self._answers = 0
        self.on_cluster_changed: Callable[[ClusterChange], None] = lambda _change: None
        """Called with every cluster that comes or goes."""
        self._pool = Pool(len(self._experts), self._settings.pool)
        spoken = all_specialists(self._global.lengths, self._settings) if specialists is None else specialists
        self._specialists = Specialists(spoken, self._settings.pool)
        self._assigning = next((expert for expert in self._experts if expert.name == ClusterLengthRegressor.name), None)
        """The expert that assigns prompts to clusters, where there is one."""

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features."""
        return prompt_features(prompt)

    def prior(self, model: str) -> LengthDistribution:
        """The distribution of all of the model's answers."""
        return LengthDistribution(self._global.lengths, self._global.prior(model).mass)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The pooled and corrected distribution, with each expert's weight in it."""
        return self.predict_many([features], model)[0]

    def predict_many(self, features: Sequence[Features], model: str) -> list[Forecast]:
        """The pooled and corrected distributions, with each expert's weight in them."""
        forecasts = self._mixed(features, model)
        return [
            self._specialists.refine(forecast, hints(prompt), model) if has_hints(prompt) else forecast
            for forecast, prompt in zip(forecasts, features, strict=True)
        ]

    def _mixed(self, features: Sequence[Features], model: str) -> list[Forecast]:
        """What the experts predict who speak of every prompt."""
        prior, lengths = self._global.prior(model), self._global.lengths
        queries = [Query(prompt, model, prior, self._ngrams.of(prompt)) for prompt in features]
        assigned = None if self._assigning is None else self._assigning.predict(queries)
        clusters: Sequence[int | None] = (assigned.clusters if assigned else None) or [None] * len(queries)
        weights = self._pool.significant_weights(model, clusters)
        masses, own, trust = self._ask(queries, weights, assigned)
        pooled = self._pool.mix(masses, weights, model)
        evidence = own + (1.0 - trust) * self._global.evidence(model)
        names = [expert.name for expert in self._experts]
        at_risk = at_risk_of(self._global, model, len(queries), assigned)
        return [
            Forecast(
                distribution=LengthDistribution(lengths, mass.copy()),
                cluster=cluster,
                evidence=behind,
                experts=dict(zip(names, shares, strict=True)),
                at_risk=reached,
            )
            for mass, cluster, behind, shares, reached in zip(
                pooled, clusters, evidence.tolist(), weights.tolist(), at_risk, strict=True
            )
        ]

    def _ask(
        self, queries: Sequence[Query], weights: FloatArray, assigned: ExpertPredictions | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Ask each expert about the prompts for which it has weight; ``assigned`` is the assigning one's answer to all.

        Returns their masses, shape (prompts, experts, bins), and the weighted sums of their evidence and of their trust.
        """
        masses = np.zeros((*weights.shape, self._global.lengths.size))
        own, trust = np.zeros((2, len(queries)))
        for number, expert in enumerate(self._experts):
            shares = weights[:, number]
            rows = shares.nonzero()[0]
            if expert is self._assigning and assigned is not None:
                said, rows = assigned, np.arange(len(queries))
            elif rows.size:
                said = expert.predict([queries[row] for row in rows])
            else:
                continue
            masses[rows, number] = said.masses
            own[rows] += shares[rows] * said.evidence
            trust[rows] += shares[rows] * said.trust
        return masses, own, trust

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach every expert, and credit each by its prediction; returns the drift that an expert found.

        Whichever expert found it, it is reported for the prompt's cluster, whose predictions it concerns;
        before there are clusters for cluster 0, and then it may be the model's own.
        """
        if has_hints(features):
            (forecast,) = self._mixed([features], model)
            self._specialists.learn(forecast, hints(features), model, observation)
        query = Query(features, model, self._global.prior(model), self._ngrams.of(features))
        young = self._answers < self._settings.judge_all
        credited = young or self._answers % self._settings.judge_every == 0
        corrected = credited or self._answers % self._settings.correct_every == 0
        self._answers += 1
        results, weights = self._teach_experts(query, observation, credited=credited, corrected=corrected)
        cluster = next((result.cluster for result in results if result.cluster is not None), None)
        if corrected:
            scored = [result.scored_prediction for result in results]
            self._pool.learn(scored, weights, model, cluster, credited=credited)
        forgetting = self._global.learn(model, observation)
        self._ngrams.learn(features)
        found = next((result.drifts for result in results if result.drifts), [])
        if not found and cluster is None:
            found = drifts_of(model, 0, forgetting)
        return [replace(drift, cluster=cluster or 0) for drift in found]

    def _teach_experts(
        self, query: Query, observation: Observation, *, credited: bool, corrected: bool
    ) -> tuple[list[LearningResult], FloatArray]:
        """Teach all, first the expert that assigns clusters; score all, those of most weight, or none.

        Returns their results and the weights that they had.
        """
        assigned = None if self._assigning is None else self._assigning.learn(query, observation, judged=credited)
        for change in [] if assigned is None else assigned.changes:
            self.on_cluster_changed(change)
        weights = self._pool.weights(query.model, None if assigned is None else assigned.cluster)
        least = 0.0 if credited else self._settings.pool.least_correcting_weight * float(weights.max())
        results = [
            assigned
            if expert is self._assigning and assigned is not None
            else expert.learn(query, observation, judged=corrected and weight >= least)
            for weight, expert in zip(weights, self._experts, strict=True)
        ]
        return results, weights
