import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.experts.expert import ScoredPrediction, scored_prediction
from online_learning.mixture.pooling import Correction, Pool, PoolSettings

BINS = 40
RIGHT = np.exp(-0.5 * ((np.arange(BINS) - 20) / 3.0) ** 2)
RIGHT /= RIGHT.sum()
WRONG = np.roll(RIGHT, 12)
EVEN = np.full(BINS, 1.0 / BINS)


def _taught(pool: Pool, masses: list[np.ndarray], truth: np.ndarray, count: int, cluster: int | None = None) -> None:
    generator = np.random.default_rng(1)
    for position in generator.choice(truth.size, size=count, p=truth):
        scored = [scored_prediction(mass, int(position), censored=False) for mass in masses]
        pool.learn(scored, pool.weights("m", cluster), "m", cluster)


def test_the_expert_that_is_right_gets_nearly_all_weight() -> None:
    """Of one that is right, one that is wrong and one that says nothing, after 300 answers."""
    pool = Pool(3, PoolSettings())
    _taught(pool, [RIGHT, WRONG, EVEN], RIGHT, 300)
    assert pool.weights("m", None)[0] > 0.9


def test_weights_climb_to_the_best_pool_rather_than_to_the_best_expert() -> None:
    """Where answers come from two experts' distributions by a coin that lands 7 to 3, both keep about that weight."""
    pool = Pool(2, PoolSettings())
    _taught(pool, [RIGHT, WRONG], 0.7 * RIGHT + 0.3 * WRONG, 3_000)
    assert pool.weights("m", None)[0] == pytest.approx(0.7, abs=0.1)


def test_clusters_have_weights_of_their_own_and_new_ones_those_of_the_model() -> None:
    """In cluster 1 the first expert is right, in cluster 2 the second, and there is twice as much of cluster 1."""
    pool = Pool(2, PoolSettings())
    for _ in range(40):
        _taught(pool, [RIGHT, WRONG], RIGHT, 10, cluster=1)
        _taught(pool, [RIGHT, WRONG], WRONG, 5, cluster=2)
    assert pool.weights("m", 1)[0] > 0.9
    assert pool.weights("m", 2)[1] > 0.9
    np.testing.assert_array_equal(pool.weights("m", 3), pool.weights("m", None))


def test_an_expert_comes_back_when_it_is_right_again() -> None:
    """After 5,000 answers that spoke against it, 100 that speak for it are enough."""
    pool = Pool(2, PoolSettings())
    _taught(pool, [RIGHT, WRONG], RIGHT, 5_000)
    assert pool.weights("m", None)[1] > 0.001
    _taught(pool, [RIGHT, WRONG], WRONG, 100)
    assert pool.weights("m", None)[1] > 0.8


def test_a_new_model_starts_with_what_holds_for_all() -> None:
    """What one model showed of the experts holds for the next."""
    pool = Pool(2, PoolSettings())
    _taught(pool, [RIGHT, WRONG], RIGHT, 300)
    assert pool.weights("another", None)[0] > 0.8


def test_a_pool_that_is_too_wide_is_narrowed() -> None:
    """A distribution of twice the true width covers too much; corrected, its central half holds half the answers."""
    wide = np.exp(-0.5 * ((np.arange(BINS) - 20) / 6.0) ** 2)
    wide /= wide.sum()
    pool = Pool(1, PoolSettings())
    _taught(pool, [wide], RIGHT, 3_000)
    mixed = pool.mix(wide[None, None, :], np.ones((1, 1)), "m")[0]
    cumulative = np.cumsum(mixed)
    low, high = np.searchsorted(cumulative, (0.25, 0.75))
    held = RIGHT[low : high + 1].sum()
    plain_low, plain_high = np.searchsorted(np.cumsum(wide), (0.25, 0.75))
    assert held < RIGHT[plain_low : plain_high + 1].sum() - 0.1
    assert 0.4 < held < 0.7


def test_distributions_of_one_shape_are_corrected_apart() -> None:
    """A narrow distribution that is right keeps its shape while wide ones that are too wide are narrowed."""
    narrow, wide = (np.exp(-0.5 * ((np.arange(BINS) - 20) / width) ** 2) for width in (3.0, 8.0))
    narrow, wide = narrow / narrow.sum(), wide / wide.sum()
    correction = Correction(PoolSettings())
    generator = np.random.default_rng(3)
    for position in generator.choice(BINS, size=4_000, p=RIGHT):
        for mass in (narrow, wide):
            low = float(mass[:position].sum())
            correction.learn(mass, low, low + float(mass[position]))
    deviations = [
        float(np.sqrt(correction.apply(mass[None, :])[0] @ (np.arange(BINS) - 20.0) ** 2)) for mass in (narrow, wide)
    ]
    assert deviations[0] == pytest.approx(3.0, rel=0.2)
    assert deviations[1] < 4.5


def test_experts_of_little_weight_need_not_be_asked() -> None:
    """They have no weight in the mixture; the rest sum to 1."""
    pool = Pool(3, PoolSettings())
    _taught(pool, [RIGHT, WRONG, EVEN], RIGHT, 2_000)
    weights = pool.significant_weights("m", [None])[0]
    assert weights.tolist() == [1.0, 0.0, 0.0]


def test_without_credit_an_answer_corrects_and_leaves_the_weights() -> None:
    """And those experts that were not scored are left out."""
    pool = Pool(2, PoolSettings())
    weights = pool.weights("m", 0)
    for position in range(BINS):
        pool.learn([scored_prediction(RIGHT, position, censored=False), None], weights, "m", 0, credited=False)
    np.testing.assert_array_equal(pool.weights("m", 0), weights)
    assert not np.allclose(pool.mix(RIGHT[None, None, :], np.ones((1, 1)), "m")[0], RIGHT, atol=1e-4)


@settings(max_examples=50)
@given(
    answers=st.lists(
        st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, BINS - 1)),
        max_size=60,
    ),
    position=st.integers(0, BINS - 1),
)
def test_a_corrected_distribution_is_a_distribution(answers: list[tuple[float, float, int]], position: int) -> None:
    """Whatever was learnt, masses are not negative, sum to 1, and none that was there is gone."""
    correction = Correction(PoolSettings())
    for one, other, shift in answers:
        correction.learn(np.roll(RIGHT, shift), min(one, other), max(one, other))
    mass = np.roll(RIGHT, position)
    (corrected,) = correction.apply(mass[None, :])
    assert corrected.sum() == pytest.approx(1.0)
    assert float(corrected.min()) >= 0.0
    assert bool((corrected[mass > 1e-6] > 0.0).all())


def test_impossible_and_certain_answers_leave_the_weights_finite() -> None:
    """Chances of 0 and 1 alike."""
    pool = Pool(2, PoolSettings())
    for _ in range(50):
        for chances in ((0.0, 0.0), (1.0, 0.0)):
            scored = [ScoredPrediction(chance, 1.0 - chance, EVEN) for chance in chances]
            pool.learn(scored, pool.weights("m", 0), "m", 0)
    weights = pool.weights("m", 0)
    assert bool(np.isfinite(weights).all())
    assert weights.sum() == pytest.approx(1.0)
