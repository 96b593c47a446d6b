import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.expert import Verdict, verdict
from online_learning.pooling import Correction, Pool, PoolSettings

BINS = 40
RIGHT = np.exp(-0.5 * ((np.arange(BINS) - 20) / 3.0) ** 2)
RIGHT /= RIGHT.sum()
WRONG = np.roll(RIGHT, 12)
EVEN = np.full(BINS, 1.0 / BINS)


def _taught(pool: Pool, masses: list[np.ndarray], truth: np.ndarray, count: int, region: int | None = None) -> None:
    generator = np.random.default_rng(1)
    for position in generator.choice(truth.size, size=count, p=truth):
        pool.learn([verdict(mass, int(position), censored=False) for mass in masses], "m", region)


def test_the_expert_that_is_right_gets_nearly_all_weight() -> None:
    """Of one that is right, one that is wrong and one that says nothing, after 300 answers."""
    pool = Pool(3, PoolSettings())
    _taught(pool, [RIGHT, WRONG, EVEN], RIGHT, 300)
    assert pool.weights("m", None)[0] > 0.9


def test_weights_climb_to_the_best_pool_rather_than_to_the_best_expert() -> None:
    """Where answers come from two experts' beliefs by a coin that lands 7 to 3, both keep about that weight."""
    pool = Pool(2, PoolSettings())
    _taught(pool, [RIGHT, WRONG], 0.7 * RIGHT + 0.3 * WRONG, 3_000)
    assert pool.weights("m", None)[0] == pytest.approx(0.7, abs=0.1)


def test_regions_have_weights_of_their_own_and_new_ones_those_of_the_model() -> None:
    """In region 1 the first expert is right, in region 2 the second, and there is twice as much of region 1."""
    pool = Pool(2, PoolSettings())
    for _ in range(40):
        _taught(pool, [RIGHT, WRONG], RIGHT, 10, region=1)
        _taught(pool, [RIGHT, WRONG], WRONG, 5, region=2)
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
    """What one model showed of the experts is believed of the next."""
    pool = Pool(2, PoolSettings())
    _taught(pool, [RIGHT, WRONG], RIGHT, 300)
    assert pool.weights("another", None)[0] > 0.8


def test_a_pool_that_is_too_wide_is_narrowed() -> None:
    """A belief of twice the true width covers too much; corrected, its central half holds half the answers."""
    wide = np.exp(-0.5 * ((np.arange(BINS) - 20) / 6.0) ** 2)
    wide /= wide.sum()
    pool = Pool(1, PoolSettings())
    _taught(pool, [wide], RIGHT, 3_000)
    mixed = pool.mix(wide[None, :], np.ones(1), "m", None)
    cumulative = np.cumsum(mixed)
    low, high = np.searchsorted(cumulative, (0.25, 0.75))
    held = RIGHT[low : high + 1].sum()
    plain_low, plain_high = np.searchsorted(np.cumsum(wide), (0.25, 0.75))
    assert held < RIGHT[plain_low : plain_high + 1].sum() - 0.1
    assert 0.4 < held < 0.7


@settings(max_examples=50)
@given(
    answers=st.lists(
        st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.one_of(st.none(), st.integers(0, 3))), max_size=60
    ),
    position=st.integers(0, BINS - 1),
)
def test_a_corrected_belief_is_a_belief(answers: list[tuple[float, float, int | None]], position: int) -> None:
    """Whatever was learnt, masses are not negative, sum to 1, and none that was there is gone."""
    correction = Correction(PoolSettings())
    for one, other, region in answers:
        correction.learn(min(one, other), max(one, other), region)
    mass = np.roll(RIGHT, position)
    for region in (None, 0, 9):
        corrected = correction.apply(mass, region)
        assert corrected.sum() == pytest.approx(1.0)
        assert float(corrected.min()) >= 0.0
        assert bool((corrected[mass > 1e-6] > 0.0).all())


def test_impossible_and_certain_answers_leave_the_weights_finite() -> None:
    """Chances of 0 and 1 alike."""
    pool = Pool(2, PoolSettings())
    for _ in range(50):
        pool.learn([Verdict(0.0, 1.0), Verdict(0.0, 0.0)], "m", 0)
        pool.learn([Verdict(1.0, 0.0), Verdict(0.0, 1.0)], "m", 0)
    weights = pool.weights("m", 0)
    assert bool(np.isfinite(weights).all())
    assert weights.sum() == pytest.approx(1.0)
