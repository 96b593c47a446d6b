"""The learner of each policy in a benchmark."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs

from controller.policy.ablations import MISLED
from controller.policy.baselines import PAPER
from online_learning.distribution import LengthDistribution
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.paper_predictor import SimilarityLearner
from online_learning.length_learner import Drift, Features, Forecast, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner

OTHERS_KEPT = 200
"""Latest requests one of whose predictions another one gets."""


def bench_learner(name: str) -> LengthLearner:
    """A new learner for a policy: the paper's predictor for the paper's policies, else the one that runs live."""
    if name == "sage-without-predictor":
        return GlobalLearner()
    if name in MISLED:
        return MisledLearner(MixtureLearner(), MISLED[name])
    return SimilarityLearner() if name.startswith(PAPER) else MixtureLearner()


@dataclass(slots=True)
class MisledLearner:
    """A learner whose predictions are wrong, and whose prior is right, so that a guard can notice.

    Args:
        learner: what learns and predicts.
        factor: what predicted lengths are multiplied by; None for the prediction of another of the latest requests.
    """

    learner: LengthLearner
    factor: float | None
    _others: deque[Features] = field(default_factory=lambda: deque(maxlen=OTHERS_KEPT))
    _chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def features(self, prompt: Prompt) -> Features:
        """The learner's own features."""
        return self.learner.features(prompt)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """A wrong forecast."""
        if self.factor is None:
            self._others.append(features)
            return self.learner.predict_one(self._others[int(self._chance.integers(len(self._others)))], model)
        found = self.learner.predict_one(features, model)
        return structs.replace(found, distribution=stretched(found.distribution, self.factor), at_risk=None)

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the learner."""
        return self.learner.learn_one(features, model, observation)

    def prior(self, model: str) -> LengthDistribution:
        """The learner's own prior."""
        return self.learner.prior(model)


def stretched(predicted: LengthDistribution, factor: float) -> LengthDistribution:
    """The distribution of a length times a factor, to whole tokens and at least one.

    >>> found = stretched(LengthDistribution(np.array([2, 3, 20]), np.array([0.25, 0.25, 0.5])), 0.2)
    >>> found.lengths.tolist(), found.mass.tolist()
    ([1, 4], [0.5, 0.5])
    """
    lengths = np.maximum(1, np.rint(predicted.lengths * factor)).astype(predicted.lengths.dtype)
    whole, places = np.unique(lengths, return_inverse=True)
    mass = np.zeros(whole.size)
    np.add.at(mass, places, predicted.mass)
    return LengthDistribution(whole, mass)
