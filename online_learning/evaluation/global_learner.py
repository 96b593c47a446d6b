"""The learner that looks at nothing but the model: the baseline of every other."""

from __future__ import annotations

from online_learning.distribution import LengthDistribution
from online_learning.experts.expert import at_risk_of, drifts_of
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import Drift, Features, Forecast, Observation, Prompt
from online_learning.mixture.settings import LearnerSettings
from online_learning.survival.model_prior import ModelPrior


class GlobalLearner:
    """One length distribution per model, shrunk to the one over all models; the prompt says nothing.

    What any learner that looks at prompts has to beat, and what it falls back to. Fails where lengths differ by
    prompt.

    Args:
        settings: those of the grid, the models and their sketches count.

    >>> import numpy as np
    >>> learner = GlobalLearner()
    >>> prompt = Prompt(token_ids=np.arange(9, dtype=np.uint32), prompt_tokens=9, max_tokens=64, temperature=1.0, model="m")
    >>> for _ in range(500):
    ...     _ = learner.learn_one(learner.features(prompt), "m", Observation(100, censored=False))
    >>> learner.predict_one(learner.features(prompt), "m").distribution.quantile(0.5)
    108
    """

    def __init__(self, settings: LearnerSettings | None = None) -> None:
        self._predicted = ModelPrior((settings or LearnerSettings()).model_prior)

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features, so that what is recorded can teach any learner."""
        return prompt_features(prompt)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The model's distribution, whatever the prompt."""
        evidence = self._predicted.evidence(model)
        return Forecast(
            distribution=self.prior(model),
            cluster=None,
            evidence=evidence,
            experts={"global": 1.0},
            at_risk=at_risk_of(self._predicted, model, 1, None)[0],
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Take an answer into account; a drift is reported as that of cluster 0."""
        return drifts_of(model, 0, self._predicted.learn(model, observation))

    def prior(self, model: str) -> LengthDistribution:
        """The distribution that every prompt gets."""
        return LengthDistribution(self._predicted.lengths, self._predicted.prior(model).mass)
