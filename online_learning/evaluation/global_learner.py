"""The learner that looks at nothing but the model, and the settings that all learners share.

A learner's state is a function of the (features, model, observation) triples that it was taught, in their order:
predicting changes nothing and all chance is seeded, so that teaching the recorded triples again to a new learner
with the same settings rebuilds it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from online_learning.clustering.clusters import ClusterSettings
from online_learning.distribution import LengthDistribution
from online_learning.experts.expert import at_risk_of, drifts_of
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import Drift, Features, Forecast, Observation, Prompt
from online_learning.survival.length_sketch import SketchSettings
from online_learning.survival.model_prior import GlobalSettings, ModelPrior


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Settings that all learners share."""

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

    @property
    def of_global(self) -> GlobalSettings:
        """Those of the global belief."""
        return GlobalSettings(
            longest_tokens=self.longest_tokens,
            max_models=self.max_models,
            prior_answers=self.prior_answers,
            sketch=self.sketch,
        )


class GlobalLearner:
    """One length distribution per model, shrunk to the one over all models; the prompt says nothing.

    What any learner that looks at prompts has to beat, and what it falls back to.

    >>> import numpy as np
    >>> learner = GlobalLearner()
    >>> prompt = Prompt(token_ids=np.arange(9, dtype=np.uint32), prompt_tokens=9, max_tokens=64, temperature=1.0, model="m")
    >>> for _ in range(500):
    ...     _ = learner.learn_one(learner.features(prompt), "m", Observation(100, censored=False))
    >>> learner.predict_one(learner.features(prompt), "m").distribution.quantile(0.5)
    108
    """

    def __init__(self, settings: LearnerSettings | None = None) -> None:
        self._predicted = ModelPrior((settings or LearnerSettings()).of_global)

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features, so that what is recorded can teach any learner."""
        return prompt_features(prompt)

    def predict_one(self, features: Features, model: str) -> Forecast:  # noqa: ARG002 - the protocol's signature
        """The belief about any answer of this model."""
        evidence = self._predicted.evidence(model)
        return Forecast(
            distribution=self.prior(model),
            cluster=None,
            evidence=evidence,
            experts={"global": 1.0},
            at_risk=at_risk_of(self._predicted, model, None),
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:  # noqa: ARG002 - as above
        """Take an answer into account; a drift is reported as that of cluster 0."""
        return drifts_of(model, 0, self._predicted.learn(model, observation))

    def prior(self, model: str) -> LengthDistribution:
        """The same belief as for any prompt."""
        return LengthDistribution(self._predicted.lengths, self._predicted.prior(model).mass)
