import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.distribution import LengthDistribution, log_grid

distributions = st.builds(
    lambda lengths, seed: LengthDistribution(
        np.asarray(sorted(lengths)), np.random.default_rng(seed).dirichlet(np.ones(len(lengths)))
    ),
    st.sets(st.integers(1, 500), min_size=1, max_size=20),
    st.integers(0, 1_000),
)


@settings(deadline=None)
@given(predicted=distributions, max_tokens=st.integers(1, 600))
def test_a_cut_moves_what_is_beyond_onto_the_limit(predicted: LengthDistribution, max_tokens: int) -> None:
    """Below the limit nothing changes; beyond it nothing is left."""
    cut = predicted.cut(max_tokens)
    assert int(cut.lengths[-1]) <= max_tokens
    for attained in range(0, max_tokens, 7):
        assert abs(cut.survival(attained) - predicted.survival(attained)) < 1e-9
    assert cut.mean_tokens <= predicted.mean_tokens + 1e-9


@settings(deadline=None)
@given(predicted=distributions, attained=st.integers(0, 600))
def test_given_is_bayes_rule(predicted: LengthDistribution, attained: int) -> None:
    """What was outlived is ruled out; the rest keeps its proportions."""
    now = predicted.given(attained)
    assert int(now.lengths[0]) > attained
    if predicted.survival(attained) > 0.0:
        for later in range(attained, 600, 13):
            assert abs(now.survival(later) - predicted.survival(later) / predicted.survival(attained)) < 1e-9


@settings(deadline=None)
@given(longest=st.integers(1, 10**6), exact=st.integers(1, 64), ratio=st.floats(1.01, 3.0))
def test_a_grid_is_exact_and_then_geometric(longest: int, exact: int, ratio: float) -> None:
    """It rises, starts with every single length, ends where it shall, and no step is longer than its ratio says."""
    grid = log_grid(longest, exact, ratio)
    steps = np.diff(grid)
    assert bool((steps > 0).all())
    assert grid[: min(exact, longest)].tolist() == list(range(1, min(exact, longest) + 1))
    assert int(grid[-1]) == max(longest, exact)
    assert bool((steps <= np.maximum(1, np.ceil(grid[:-1] * (ratio - 1.0) + 0.5))).all())
