"""Learners of output lengths: one distribution per model, and prompt clusters that are shrunk towards it.

A learner's state is a function of the (features, model, observation) triples that it was taught, in their order:
predicting changes nothing and all chance is seeded, so that teaching the recorded triples again to a new learner
with the same settings rebuilds it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from online_learning.clusters import ClusterSettings, Neighbourhood, PromptClusters
from online_learning.distribution import FloatArray, LengthDistribution, log_grid
from online_learning.features import prompt_features
from online_learning.hazard import mass_from_hazard, posterior_hazard, prior_with_tail, survival_from_hazard
from online_learning.models import ModelTable
from online_learning.prompt import Drift, Features, Forecast, Observation, Prompt
from online_learning.shrinkage import Shrinkage
from online_learning.sketch import Forgetting, LengthSketch, SketchSettings

_VAGUE_ANSWERS = 3.0
"""Weight of knowing nothing, in answers: long answers end last, so the first few are no fair sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Settings of all learners here."""

    longest_tokens: int = 131_072
    """Longest length of the grid; a longer answer counts as one that long."""
    max_models: int = 16
    """Models remembered; the one taught longest ago is forgotten first."""
    prior_answers: float = 10.0
    """Weight of the belief over all models in the belief about one, in answers."""
    sketch: SketchSettings = field(default_factory=SketchSettings)
    clusters: ClusterSettings = field(default_factory=ClusterSettings)
    cluster_sketch: SketchSettings = field(
        default_factory=lambda: SketchSettings(memory_answers=1_000.0, recent_answers=128)
    )


class GlobalLearner:
    """One length distribution per model, shrunk to the one over all models; the prompt says nothing.

    What any learner that looks at prompts has to beat, and what it falls back to.

    >>> learner = GlobalLearner()
    >>> prompt = Prompt(token_ids=np.arange(9, dtype=np.uint32), prompt_tokens=9, max_tokens=64, temperature=1.0, model="m")
    >>> for _ in range(500):
    ...     _ = learner.learn_one(learner.features(prompt), "m", Observation(100, censored=False))
    >>> learner.predict_one(learner.features(prompt), "m").distribution.quantile(0.5)
    108
    """

    def __init__(self, settings: LearnerSettings | None = None) -> None:
        self._settings = settings or LearnerSettings()
        self.lengths = log_grid(self._settings.longest_tokens)
        self._all_models = LengthSketch(self.lengths, self._settings.sketch)
        self._models = ModelTable(self._new_sketch, bound=self._settings.max_models)

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features, so that what is recorded can teach any learner."""
        return prompt_features(prompt)

    def predict_one(self, features: Features, model: str) -> Forecast:  # noqa: ARG002 - the protocol's signature
        """The belief about any answer of this model."""
        return Forecast(
            distribution=self.prior(model), cluster=None, evidence=self.evidence(model), experts={"global": 1.0}
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:  # noqa: ARG002 - as above
        """Take an answer into account; a drift is reported as that of cluster 0."""
        self._all_models.learn_one(observation)
        forgetting = self._models.taught(model).learn_one(observation)
        return _drifts(model, 0, forgetting)

    def prior(self, model: str) -> LengthDistribution:
        """The same belief as for any prompt."""
        return LengthDistribution(self.lengths, mass_from_hazard(self.hazard(model)))

    def hazard(self, model: str) -> FloatArray:
        """The belief as hazards on the grid."""
        everything = self._all_models
        vague = prior_with_tail(self.lengths, everything.events, everything.exposure)
        over_models = posterior_hazard(everything.events, everything.exposure, vague, _VAGUE_ANSWERS)
        sketch = self._models.known(model)
        if sketch is None:
            return over_models
        return posterior_hazard(sketch.events, sketch.exposure, over_models, self._settings.prior_answers)

    def evidence(self, model: str) -> float:
        """Effective number of answers behind the belief about a model."""
        sketch = self._models.known(model)
        return self._all_models.evidence if sketch is None else sketch.evidence

    def _new_sketch(self) -> LengthSketch:
        return LengthSketch(self.lengths, self._settings.sketch)


def _drifts(model: str, cluster: int, forgetting: Forgetting | None) -> list[Drift]:
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


@dataclass(frozen=True, slots=True)
class _Taught:
    """One of the first answers, kept until the clusters are formed for the last time."""

    features: Features
    model: str
    observation: Observation


@dataclass(frozen=True, slots=True)
class _ClusterBeliefs:
    """One model's sketches, one for each cluster, and how far they are shrunk."""

    sketches: list[LengthSketch]
    shrinkage: Shrinkage


@dataclass(frozen=True, slots=True)
class _Pooled:
    """Counts of a neighbourhood, weighted by nearness."""

    events: FloatArray
    exposure: FloatArray
    evidence: float


class ClusterLearner:
    """Prompt clusters, each with its own length distribution per model, shrunk to the model's by evidence.

    Until `ClusterSettings.early_seed_prompts` it is the `GlobalLearner`; then, and once more at `seed_prompts`, the
    clusters are formed and the answers so far are sorted into them; from there on they only move. How far a cluster is shrunk is learnt from recent log scores, so that on
    prompts that say nothing about length it stays the global belief.
    """

    def __init__(self, settings: LearnerSettings | None = None) -> None:
        self._settings = settings or LearnerSettings()
        self._global = GlobalLearner(self._settings)
        self._clusters = PromptClusters(self._settings.clusters)
        self._models = self._new_models()
        self._settled = False
        self._first: list[_Taught] = []

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features."""
        return prompt_features(prompt)

    def prior(self, model: str) -> LengthDistribution:
        """The model's global belief."""
        return self._global.prior(model)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The belief drawn from the nearest clusters; global until there are clusters."""
        beliefs = self._models.known(model)
        if not self._clusters.seeded or beliefs is None:
            return self._global.predict_one(features, model)
        near = self._clusters.neighbourhood(features)
        pooled = _pool(beliefs.sketches, near)
        candidates = self._candidates(pooled, self._global.hazard(model), beliefs.shrinkage)
        trust = beliefs.shrinkage.trust(pooled.evidence)
        return Forecast(
            distribution=LengthDistribution(self._global.lengths, beliefs.shrinkage.mix(candidates)),
            cluster=int(near.clusters[0]),
            evidence=pooled.evidence + (1.0 - trust) * self._global.evidence(model),
            experts={"cluster": trust, "global": 1.0 - trust},
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Take an answer into account; returns the drift of its cluster, if that is what it revealed."""
        drifts = self._learn_in_cluster(features, model, observation) if self._clusters.seeded else []
        self._global.learn_one(features, model, observation)
        if not self._settled:
            self._first.append(_Taught(features, model, observation))
            if len(self._first) in (*self._settings.clusters.early_seed_prompts, self._settings.clusters.seed_prompts):
                self._seed()
        return drifts

    def _seed(self) -> None:
        self._clusters.seed([taught.features for taught in self._first])
        self._models = self._new_models()
        for taught in self._first:
            self._learn_in_cluster(taught.features, taught.model, taught.observation)
        if len(self._first) >= self._settings.clusters.seed_prompts:
            self._settled = True
            self._first.clear()

    def _learn_in_cluster(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        beliefs = self._models.taught(model)
        pooled = _pool(beliefs.sketches, self._clusters.neighbourhood(features))
        beliefs.shrinkage.learn_one(
            self._candidates(pooled, self._global.hazard(model), beliefs.shrinkage), self._global.lengths, observation
        )
        cluster = self._clusters.follow(features)
        return _drifts(model, cluster, beliefs.sketches[cluster].learn_one(observation))

    def _candidates(self, pooled: _Pooled, prior: FloatArray, shrinkage: Shrinkage) -> FloatArray:
        """Mass under each strength of shrinkage, one row each."""
        strength = shrinkage.strengths[:, None] * survival_from_hazard(prior)
        return mass_from_hazard(posterior_hazard(pooled.events, pooled.exposure, prior, strength))

    def _new_models(self) -> ModelTable[_ClusterBeliefs]:
        return ModelTable(self._new_beliefs, bound=self._settings.max_models)

    def _new_beliefs(self) -> _ClusterBeliefs:
        count = self._settings.clusters.clusters
        sketches = [LengthSketch(self._global.lengths, self._settings.cluster_sketch) for _ in range(count)]
        return _ClusterBeliefs(sketches, Shrinkage())


def _pool(sketches: list[LengthSketch], near: Neighbourhood) -> _Pooled:
    chosen = [sketches[cluster] for cluster in near.clusters]
    return _Pooled(
        events=near.weights @ np.stack([sketch.events for sketch in chosen]),
        exposure=near.weights @ np.stack([sketch.exposure for sketch in chosen]),
        evidence=float(near.weights @ np.array([sketch.evidence for sketch in chosen])),
    )
