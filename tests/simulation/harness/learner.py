"""Learners of the product that raise wherever a seed has them raise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from harness.faults import Faults, LearnerError

from controller.prompt_encoder import Embed
from online_learning.distribution import LengthDistribution
from online_learning.experts.cluster import ClusterLengthRegressor
from online_learning.experts.expert import SoloLearner
from online_learning.experts.semantic import Embedding, SemanticLearner
from online_learning.length_learner import Drift, Features, Forecast, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner
from online_learning.mixture.settings import LearnerSettings

EMBEDDING_DIMENSIONS = 8


def learner_of(kind: str, faults: Faults) -> LengthLearner:
    """The learner of a seed: the quick one for most, the whole mixture for some, with an encoder for a few."""
    match kind:
        case "clusters":
            return _FaultyClusters(faults)
        case "mixture":
            return _FaultyMixture(faults)
        case _:
            return _FaultySemantic(faults)


class _Raises:
    """Raises before or after the learner did its work."""

    faults: Faults
    rebuilding = False

    def features(self, prompt: Prompt) -> Features:
        self.faults.learner("features")
        return super().features(prompt)  # type: ignore[misc,no-any-return]

    def predict_one(self, features: Features, model: str) -> Forecast:
        self.faults.learner("predict")
        with self.faults.within("online_learning", "library call raises in learner", LearnerError):
            return super().predict_one(features, model)  # type: ignore[misc,no-any-return]

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        part = "rebuild" if self.rebuilding else "learn"
        if part == "rebuild":
            self.faults.learner(part)
        with self.faults.within("online_learning", "library call raises in learner", LearnerError):
            drifts = super().learn_one(features, model, observation)  # type: ignore[misc]
        if part == "learn":
            self.faults.learner(part)
        return drifts  # type: ignore[no-any-return]

    def prior(self, model: str) -> LengthDistribution:
        self.faults.learner("prior")
        return super().prior(model)  # type: ignore[misc,no-any-return]


def _clusters() -> ClusterLengthRegressor:
    common = LearnerSettings()
    return ClusterLengthRegressor(common.clusters, common.cluster_sketch)


class _FaultyClusters(_Raises, SoloLearner):
    def __init__(self, faults: Faults) -> None:
        super().__init__(_clusters())
        self.faults = faults


class _FaultyMixture(_Raises, MixtureLearner):
    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults


class _FaultySemantic(_Raises, SemanticLearner):
    def __init__(self, faults: Faults) -> None:
        super().__init__(SoloLearner(_clusters()))
        self.faults = faults


def embed_with(faults: Faults) -> Embed:
    """An encoder of prompts that is quick, means nothing, and fails now and then."""

    def embed(prompts: Sequence[bytes]) -> Sequence[Embedding]:
        if faults.strikes("encoder raises"):
            raise LearnerError("encoder")
        ids = [np.frombuffer(prompt, dtype="<u4") for prompt in prompts]
        return [np.resize(prompt, EMBEDDING_DIMENSIONS).astype(np.float32) for prompt in ids]

    return embed
