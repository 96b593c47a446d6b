import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.distribution import log_grid
from online_learning.survival.hazard import (
    FASTEST_TAIL,
    mass_from_hazard,
    power_tail_hazard,
    prior_with_tail,
    survival_from_hazard,
    vague_hazard,
)

GRID = log_grid()


@settings(deadline=None)
@given(hazard=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_mass_is_what_survival_loses(hazard: list[float]) -> None:
    """The mass sums to 1, and the survival of a bin is the mass from it on."""
    values = np.asarray(hazard)
    mass = mass_from_hazard(values)
    assert abs(mass.sum() - 1.0) < 1e-9
    assert mass.min() >= 0.0
    np.testing.assert_allclose(survival_from_hazard(values), np.cumsum(mass[::-1])[::-1], atol=1e-9)


def test_rows_are_distributions_of_their_own() -> None:
    """A matrix of hazards gives the same as its rows one by one."""
    rows = np.random.default_rng(0).random((4, 9))
    np.testing.assert_array_equal(mass_from_hazard(rows), np.stack([mass_from_hazard(row) for row in rows]))


def test_knowing_nothing_is_broad() -> None:
    """Before any answer the middle nine tenths of the distribution span a factor of a hundred."""
    cumulative = np.cumsum(mass_from_hazard(vague_hazard(GRID)))
    low, high = (GRID[np.searchsorted(cumulative, p)] for p in (0.05, 0.95))
    assert high / low > 40


def _counts(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    events = np.bincount(np.searchsorted(GRID, lengths), minlength=GRID.size).astype(float)
    return events, np.cumsum(events[::-1])[::-1]


def test_the_exponent_of_a_power_law_is_recovered() -> None:
    """From 50,000 Pareto lengths of exponent 2.2, within a tenth."""
    lengths = np.ceil(20 * (1 - np.random.default_rng(1).random(50_000)) ** (-1 / 2.2))
    hazard = power_tail_hazard(GRID, *_counts(np.minimum(lengths, GRID[-1])))
    exponent = -np.log(1 - hazard[-2]) / np.log(GRID[-2] / GRID[-3])
    assert abs(exponent - 2.2) < 0.1


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 5_000), max_size=300))
def test_a_tail_is_never_light(lengths: list[int]) -> None:
    """However light the data's own tail, past them the survival falls by a power of three at most."""
    hazard = prior_with_tail(GRID, *_counts(np.asarray(lengths, dtype=int)))
    first = int(np.searchsorted(GRID, 5_000)) + 1
    fastest = 1 - (GRID[first - 1 : -1] / GRID[first:]) ** FASTEST_TAIL
    assert bool((hazard[first:] <= fastest + 1e-9).all())
