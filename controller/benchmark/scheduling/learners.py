"""The learner of each policy in a benchmark."""

from __future__ import annotations

from controller.policy.baselines import PAPER
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.paper_predictor import SimilarityLearner
from online_learning.length_learner import LengthLearner
from online_learning.mixture.mixture import MixtureLearner


def bench_learner(name: str) -> LengthLearner:
    """A new learner for a policy: the paper's predictor for the paper's policies, else the one that runs live."""
    if name == "sage-without-predictor":
        return GlobalLearner()
    return SimilarityLearner() if name.startswith(PAPER) else MixtureLearner()
