"""Which learner predicts for which policy of a benchmark."""

from __future__ import annotations

from controller.policy.baselines import PAPER
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.paper_predictor import SimilarityLearner
from online_learning.length_learner import LengthLearner
from online_learning.mixture.mixture import MixtureLearner


def bench_learner(name: str) -> LengthLearner:
    """A fresh learner: the paper's policies predict by similarity, as it says; all others with what runs live."""
    if name == "sage-without-predictor":
        return GlobalLearner()
    return SimilarityLearner() if name.startswith(PAPER) else MixtureLearner()
