import numpy as np

from online_learning.prompt import Observation
from online_learning.shrinkage import STRENGTHS, Shrinkage

LENGTHS = np.array([10, 100])


def _candidates(evidence_is_right: bool) -> np.ndarray:  # noqa: FBT001 - one of two cases
    """Short answers are certain by the evidence and unlikely by the common belief, or the other way round."""
    own = np.asarray(STRENGTHS)[::-1] if evidence_is_right else np.asarray(STRENGTHS)
    short = 0.1 + 0.8 * np.argsort(np.argsort(own)) / (len(STRENGTHS) - 1)
    return np.stack((short, 1.0 - short), axis=1)


def test_at_first_all_strengths_count_alike() -> None:
    """Nothing was predicted yet."""
    np.testing.assert_allclose(Shrinkage().weights, 1.0 / len(STRENGTHS))


def test_what_predicted_well_is_believed() -> None:
    """Where clusters are right they are hardly shrunk; where the common belief is right, nearly wholly."""
    trusting, doubting = Shrinkage(), Shrinkage()
    for _ in range(50):
        trusting.learn_one(_candidates(evidence_is_right=True), LENGTHS, Observation(10, censored=False))
        doubting.learn_one(_candidates(evidence_is_right=False), LENGTHS, Observation(10, censored=False))
    assert trusting.weights[0] > 0.9
    assert doubting.weights[-1] > 0.9
    assert trusting.trust(100.0) > 0.9
    assert doubting.trust(100.0) < 0.1


def test_an_unfinished_answer_is_scored_by_living_on() -> None:
    """That an answer passed 50 tokens speaks for those who said so."""
    shrinkage = Shrinkage()
    for _ in range(30):
        shrinkage.learn_one(_candidates(evidence_is_right=True), LENGTHS, Observation(50, censored=True))
    assert shrinkage.weights[-1] > 0.9


def test_no_strength_is_ever_lost() -> None:
    """After a thousand answers that spoke against it a strength comes back within its memory."""
    shrinkage = Shrinkage(memory_answers=100.0)
    for _ in range(1_000):
        shrinkage.learn_one(_candidates(evidence_is_right=True), LENGTHS, Observation(10, censored=False))
    for _ in range(200):
        shrinkage.learn_one(_candidates(evidence_is_right=False), LENGTHS, Observation(10, censored=False))
    assert shrinkage.weights[-1] > 0.9
