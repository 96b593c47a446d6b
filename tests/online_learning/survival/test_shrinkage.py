import numpy as np

from online_learning.survival.shrinkage import STRENGTHS, Shrinkage


def _chances(*, evidence_is_right: bool) -> np.ndarray:
    """What was observed was likely by the evidence and unlikely by the common distribution, or the other way round."""
    chances = np.linspace(0.9, 0.1, len(STRENGTHS))
    return chances if evidence_is_right else chances[::-1]


def test_at_first_all_strengths_count_alike() -> None:
    """Nothing was predicted yet."""
    np.testing.assert_allclose(Shrinkage().weights, 1.0 / len(STRENGTHS))


def test_what_predicted_well_has_weight() -> None:
    """Where clusters are right they are hardly shrunk; where the common distribution is right, nearly wholly."""
    trusting, doubting = Shrinkage(), Shrinkage()
    for _ in range(50):
        trusting.learn(_chances(evidence_is_right=True))
        doubting.learn(_chances(evidence_is_right=False))
    assert trusting.weights[0] > 0.9
    assert doubting.weights[-1] > 0.9
    assert trusting.trust(np.array([100.0]))[0] > 0.9
    assert doubting.trust(np.array([100.0]))[0] < 0.1


def test_no_strength_is_ever_lost() -> None:
    """After a thousand answers that spoke against it a strength comes back within its memory."""
    shrinkage = Shrinkage(memory_answers=100.0)
    for _ in range(1_000):
        shrinkage.learn(_chances(evidence_is_right=True))
    for _ in range(200):
        shrinkage.learn(_chances(evidence_is_right=False))
    assert shrinkage.weights[-1] > 0.9
