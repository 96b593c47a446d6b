"""The published predictor of SageSched: the lengths of the answers to similar prompts are the predicted distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec import structs

from online_learning.distribution import IntArray, LengthDistribution
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.features.prompt_features import TEXT_DIMENSIONS, prompt_features
from online_learning.length_learner import Drift, Features, Forecast, Observation, Prompt
from online_learning.mixture.settings import LearnerSettings
from online_learning.survival.per_model import ModelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilaritySettings:
    """The paper's constants; it leaves open what "too few" similar prompts are."""

    least_cosine: float = 0.8
    history_prompts: int = 10_000
    fewest_matches: int = 1


class _History:
    """The last prompts of one model and the lengths of their answers; the oldest makes room."""

    def __init__(self, prompts: int) -> None:
        self._texts = np.zeros((prompts, TEXT_DIMENSIONS), dtype=np.float32)
        self._lengths: IntArray = np.zeros(prompts, dtype=np.int64)
        self._seen = 0

    def add(self, text: Features, tokens: int) -> None:
        row = self._seen % self._lengths.size
        self._texts[row] = text
        self._lengths[row] = tokens
        self._seen += 1

    def similar(self, text: Features, least_cosine: float) -> IntArray:
        kept = min(self._seen, self._lengths.size)
        return self._lengths[:kept][self._texts[:kept] @ text >= least_cosine]


class SimilarityLearner:
    """SageSched's predictor to the letter (arXiv 2603.07917, section on prediction), for comparison.

    The lengths of the past answers to prompts with a cosine of at least 0.8, from a FIFO history with exact search,
    are the predicted distribution as they are; without any, it is the global one. The text features stand for the
    paper's unnamed embedding. Fails where answers are long: unfinished ones are dropped, as published, so that it
    learns the short ones, and what outlived every sample is predicted to end with the next token.

    Args:
        settings: the paper's constants.
        learner_settings: of the global distribution.
    """

    def __init__(
        self, settings: SimilaritySettings | None = None, learner_settings: LearnerSettings | None = None
    ) -> None:
        self._settings = settings or SimilaritySettings()
        self._learner_settings = learner_settings or LearnerSettings()
        self._global = GlobalLearner(self._learner_settings)
        self._histories = ModelTable(self._new_history, bound=self._learner_settings.max_models)

    def features(self, prompt: Prompt) -> Features:
        """The common prompt features, of which the text part counts."""
        return prompt_features(prompt)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The lengths of the answers to similar prompts, each with the same weight."""
        history = self._histories.get(model)
        if history is None:
            return self._fallback(features, model)
        similar = history.similar(features[:TEXT_DIMENSIONS], self._settings.least_cosine)
        if similar.size < self._settings.fewest_matches:
            return self._fallback(features, model)
        lengths, counts = np.unique(similar, return_counts=True)
        return Forecast(
            distribution=LengthDistribution(lengths, counts / similar.size),
            cluster=None,
            evidence=float(similar.size),
            experts={"similarity": 1.0},
        )

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Keep a finished answer; finds no drift."""
        if observation.censored:
            return []
        self._histories.get_or_create(model).add(features[:TEXT_DIMENSIONS], max(1, observation.output_tokens))
        self._global.learn_one(features, model, observation)
        return []

    def prior(self, model: str) -> LengthDistribution:
        """The global distribution."""
        return self._global.prior(model)

    def _fallback(self, features: Features, model: str) -> Forecast:
        """The global distribution; what still runs is left out, as published."""
        return structs.replace(self._global.predict_one(features, model), at_risk=None)

    def _new_history(self) -> _History:
        return _History(self._settings.history_prompts)
