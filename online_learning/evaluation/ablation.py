"""What each expert and each feature contributes: the mixture without one of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from online_learning.distribution import LengthDistribution, log_grid
from online_learning.features.prompt_features import DIMENSIONS, IDENTITIES, TEMPLATE_DEPTHS, TEXT_DIMENSIONS
from online_learning.features.request_hints import HINTS_FROM
from online_learning.length_learner import Drift, Features, Forecast, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings, all_experts, all_specialists

_PARTS: dict[str, slice] = {
    "projected text": slice(TEXT_DIMENSIONS),
    "prompt length": slice(TEXT_DIMENSIONS, TEXT_DIMENSIONS + 1),
    "max_tokens and temperature": slice(TEXT_DIMENSIONS + 1, DIMENSIONS),
    "template identity": slice(DIMENSIONS, DIMENSIONS + len(TEMPLATE_DEPTHS)),
    "tenant identity": slice(DIMENSIONS + len(TEMPLATE_DEPTHS), DIMENSIONS + IDENTITIES),
}


def without_each_expert(settings: MixtureSettings | None = None) -> dict[str, LengthLearner]:
    """The mixture without each of its experts in turn, by what is left out."""
    chosen = settings or MixtureSettings()
    lengths = log_grid(chosen.common.longest_tokens)
    experts, specialists = all_experts(lengths, chosen), all_specialists(lengths, chosen)
    names = [expert.name for expert in experts if expert.name != "global"]
    names += [specialist.name for specialist in specialists]
    return {
        f"without {left_out}": MixtureLearner(
            chosen,
            [expert for expert in all_experts(lengths, chosen) if expert.name != left_out],
            [specialist for specialist in all_specialists(lengths, chosen) if specialist.name != left_out],
        )
        for left_out in names
    }


def without_each_feature(settings: MixtureSettings | None = None) -> dict[str, LengthLearner]:
    """The mixture with all its experts, each time blind to one part of the features, or to which model answers."""
    learners: dict[str, LengthLearner] = {
        f"blind to {part}": BlindLearner(MixtureLearner(settings), hide=_hiding(where))
        for part, where in _PARTS.items()
    }
    learners["blind to n-grams"] = BlindLearner(MixtureLearner(settings), hide=_without_grams)
    learners["blind to the model"] = BlindLearner(MixtureLearner(settings), one_model=True)
    return learners


class BlindLearner:
    """A learner that is shown less than there is."""

    def __init__(
        self,
        learner: LengthLearner,
        *,
        hide: Callable[[Features], Features] = lambda features: features,
        one_model: bool = False,
    ) -> None:
        self._learner = learner
        self._hide = hide
        self._one_model = one_model

    def features(self, prompt: Prompt) -> Features:
        """What is left of the prompt's features."""
        return self._hide(self._learner.features(prompt))

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The learner's prediction."""
        return self._learner.predict_one(features, self._named(model))

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the learner."""
        return self._learner.learn_one(features, self._named(model), observation)

    def prior(self, model: str) -> LengthDistribution:
        """The learner's prior."""
        return self._learner.prior(self._named(model))

    def _named(self, model: str) -> str:
        return "" if self._one_model else model


def _hiding(where: slice) -> Callable[[Features], Features]:
    def hide(features: Features) -> Features:
        features[where] = 0.0
        return features

    return hide


def _without_grams(features: Features) -> Features:
    listed = features[DIMENSIONS + IDENTITIES :]
    return np.concatenate((features[: DIMENSIONS + IDENTITIES], listed[listed >= HINTS_FROM]))
