import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.calibration.scoring import (
    RollingScores,
    crps_tokens,
    log_score,
    pit,
    score,
    summarise,
    within,
)
from online_learning.distribution import LengthDistribution, log_grid
from online_learning.length_learner import Observation

distributions = st.builds(
    lambda lengths, seed: LengthDistribution(
        np.asarray(sorted(lengths)), np.random.default_rng(seed).dirichlet(np.ones(len(lengths)))
    ),
    st.sets(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 1_000),
)


@settings(max_examples=100, deadline=None)
@given(predicted=distributions, tokens=st.integers(1, 80), censored=st.booleans())
def test_crps_is_its_integral(predicted: LengthDistribution, tokens: int, censored: bool) -> None:
    """Summed token by token, up to the cut when the answer is unfinished, it is the same."""
    expected = 0.0
    for left in range(tokens if censored else 80):
        cumulative = float(predicted.mass[predicted.lengths <= left].sum())
        expected += (cumulative - float(left >= tokens)) ** 2
    assert abs(crps_tokens(predicted, Observation(tokens, censored)) - expected) < 1e-9


@settings(max_examples=60, deadline=None)
@given(predicted=distributions, tokens=st.integers(1, 80))
def test_crps_is_the_mean_of_pinball_losses(predicted: LengthDistribution, tokens: int) -> None:
    """CRPS is twice the integral of the pinball loss over all probabilities (Laio and Tamea 2007)."""
    probabilities = (np.arange(1_000) + 0.5) / 1_000
    observation = Observation(tokens, censored=False)
    errors = [tokens - predicted.quantile(float(p)) for p in probabilities]
    mean = np.mean([(p - (error < 0)) * error for p, error in zip(probabilities, errors, strict=True)])
    assert abs(2.0 * mean - crps_tokens(predicted, observation)) < 0.1


def test_pit_of_a_calibrated_prediction_is_uniform() -> None:
    """Outcomes drawn from the prediction itself give every tenth of the PIT its share and the intervals their coverage."""
    generator = np.random.default_rng(2)
    predicted = LengthDistribution(np.array([3, 10, 40, 200]), np.array([0.4, 0.3, 0.2, 0.1]))
    outcomes = generator.choice(predicted.lengths, 20_000, p=predicted.mass)
    scores = [score(predicted, Observation(int(y), censored=False), generator.random()) for y in outcomes]
    calibration = summarise(scores)
    assert calibration is not None
    assert all(abs(share - 0.1) < 0.01 for share in calibration.pit_histogram)
    assert abs(calibration.coverage_50 - 0.5) < 0.015
    assert abs(calibration.coverage_90 - 0.9) < 0.015


def test_pit_of_censored_outcomes_stays_uniform() -> None:
    """Cutting answers at random, and drawing from what may still come, leaves a calibrated prediction calibrated."""
    generator = np.random.default_rng(3)
    predicted = LengthDistribution(np.arange(1, 11), np.full(10, 0.1))
    transforms = []
    for _ in range(20_000):
        tokens, cut = int(generator.integers(1, 11)), int(generator.integers(1, 11))
        observation = Observation(min(tokens, cut), censored=cut <= tokens)
        transforms.append(pit(predicted, observation, generator.random()))
    assert np.abs(np.histogram(transforms, bins=10, range=(0, 1))[0] / 20_000 - 0.1).max() < 0.01


@settings(deadline=None)
@given(
    predicted=distributions,
    tokens=st.integers(1, 200_000),
    censored=st.booleans(),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_scores_are_finite_for_any_outcome(
    predicted: LengthDistribution,
    tokens: int,
    censored: bool,
    uniform: float,
) -> None:
    """Also for an outcome that the prediction holds impossible."""
    scored_prediction = score(predicted, Observation(tokens, censored), uniform)
    assert np.isfinite([scored_prediction.crps_tokens, scored_prediction.log_score]).all()
    assert 0.0 <= scored_prediction.pit <= 1.0
    assert scored_prediction.within_90 or not scored_prediction.within_50


def test_log_score_compares_distributions_on_different_lengths() -> None:
    """A distribution on the grid and one on a sample inside the same bin score the same."""
    grid = log_grid()
    on_grid = LengthDistribution(grid, np.eye(grid.size)[int(np.searchsorted(grid, 100))])
    on_samples = LengthDistribution(np.array([103]), np.array([1.0]))
    observation = Observation(99, censored=False)
    assert log_score(on_grid, observation) == log_score(on_samples, observation) == 0.0
    assert log_score(on_samples, Observation(200, censored=False)) == pytest.approx(np.log(1e-6))


def test_log_score_of_an_unfinished_answer_is_that_of_living_on() -> None:
    """What is known is that the answer is at least this long."""
    predicted = LengthDistribution(np.array([5, 10]), np.array([0.75, 0.25]))
    assert log_score(predicted, Observation(7, censored=True)) == pytest.approx(np.log(0.25))


def test_central_intervals_lie_around_the_median() -> None:
    """Half the mass is between the quartiles."""
    assert [within(p, 0.5) for p in (0.24, 0.26, 0.74, 0.76)] == [False, True, True, False]


def test_a_rolling_window_forgets_the_oldest() -> None:
    """Only the last scores count, and an empty window has nothing to say."""
    window = RollingScores(window=2)
    assert window.summary() is None
    predicted = LengthDistribution(np.array([10]), np.array([1.0]))
    for tokens in (1_000, 10, 12):
        window.add(score(predicted, Observation(tokens, censored=False), 0.5))
    summary = window.summary()
    assert summary is not None
    assert (summary.count, summary.crps_tokens) == (2, 1.0)
