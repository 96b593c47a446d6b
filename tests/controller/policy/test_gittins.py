import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy.gittins import gittins_index, survival_beyond
from online_learning.distribution import log_grid

Points = list[tuple[float, float]]


def brute_force(cost: np.ndarray, mass: np.ndarray, age: float) -> float:
    """The definition, word by word: every Δ at which the request may finish."""
    alive = cost > age
    remaining, weight = cost[alive] - age, mass[alive]
    if weight.sum() <= 0.0:
        return np.inf
    weight = weight / weight.sum()
    ratios = [
        float((np.minimum(remaining, delta) @ weight) / weight[remaining <= delta].sum())
        for delta in remaining
        if weight[remaining <= delta].sum() > 0.0
    ]
    return min(ratios)


@st.composite
def distributions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Increasing costs from 0 and a mass on all but the first, some of it zero."""
    steps = draw(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=25))
    weights = draw(
        st.lists(st.sampled_from([0.0, 1e-6, 0.01, 0.2, 1.0, 5.0]), min_size=len(steps), max_size=len(steps))
    )
    weights[-1] += 1e-3
    mass = np.array([0.0, *weights])
    return np.concatenate([[0.0], np.cumsum(steps)]), mass / mass.sum()


@given(distributions())
def test_the_index_is_its_definition_at_every_age(predicted: tuple[np.ndarray, np.ndarray]) -> None:
    """Brute force over every Δ at every age gives the same numbers."""
    cost, mass = predicted
    expected = [brute_force(cost, mass, age) for age in cost]
    assert gittins_index(cost, mass) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.1, 1e6), st.lists(st.floats(0.0, 0.999), max_size=10, unique=True))
def test_a_certain_length_gives_the_remaining_size(size: float, fractions: list[float]) -> None:
    """With a point mass the order is shortest remaining first."""
    ages = np.unique(np.array([0.0, *(size * fraction for fraction in fractions)]))
    cost = np.append(ages, size)
    mass = np.zeros(cost.size)
    mass[-1] = 1.0
    assert gittins_index(cost, mass)[:-1] == pytest.approx(size - ages)


@given(st.floats(0.1, 0.9), st.floats(0.001, 1000.0))
def test_a_memoryless_length_has_one_index_at_every_age(chance: float, unit: float) -> None:
    """A geometric length learns nothing from surviving, so its index is its mean remaining size for ever."""
    mass = np.append(0.0, chance * (1.0 - chance) ** np.arange(200))
    mass[-1] += 1.0 - mass.sum()
    index = gittins_index(unit * np.arange(201.0), mass)
    visible = survival_beyond(mass) > 1e-10
    assert index[:50][visible[:50]] == pytest.approx(unit / chance, rel=1e-3)


@given(st.floats(0.3, 3.0), st.floats(1.0, 100.0))
def test_a_decreasing_hazard_gives_a_rising_index(shape: float, scale: float) -> None:
    """A Pareto length that has gone on for long will go on for longer; the far tail is one far point."""
    cost = np.arange(200.0)
    mass = np.append(0.0, -np.diff((1.0 + cost / scale) ** -shape))
    index = gittins_index(np.append(cost, 1e6), np.append(mass, 1.0 - mass.sum()))
    assert (np.diff(index[:200]) > 0.0).all()


@given(distributions(), st.floats(1e-6, 1e6))
def test_the_index_scales_with_the_cost(predicted: tuple[np.ndarray, np.ndarray], factor: float) -> None:
    """Another unit of cost gives the same order."""
    cost, mass = predicted
    assert gittins_index(cost * factor, mass) == pytest.approx(gittins_index(cost, mass) * factor, rel=1e-6)


@given(distributions(), st.floats(0.0, 2.0))
def test_a_cost_that_grows_everywhere_never_lowers_the_index(
    predicted: tuple[np.ndarray, np.ndarray], stretch: float
) -> None:
    """Each further piece of the answer costs more: no age gets a better index for it."""
    cost, mass = predicted
    dearer = cost + stretch * cost**1.5
    assert (gittins_index(dearer, mass)[:-1] >= gittins_index(cost, mass)[:-1] * (1.0 - 1e-9)).all()


def test_the_tail_keeps_its_digits() -> None:
    """A survival of 1e-15 still has the index that its conditional distribution has."""
    cost = np.array([0.0, 1.0, 2.0, 5.0])
    mass = np.array([0.0, 1.0 - 4e-15, 3e-15, 1e-15])
    assert gittins_index(cost, mass)[1] == pytest.approx(brute_force(cost, mass, 1.0), rel=1e-6)


def test_a_grid_up_to_128k_tokens_takes_less_than_a_millisecond() -> None:
    """The index of every age is cheap enough to be computed when a request arrives."""
    cost = np.concatenate([[0.0], log_grid().astype(float)])
    mass = np.concatenate([[0.0], np.full(cost.size - 1, 1.0 / (cost.size - 1))])
    durations_s = []
    for _ in range(50):
        started = time.perf_counter()
        gittins_index(cost, mass)
        durations_s.append(time.perf_counter() - started)
    assert min(durations_s) < 1e-3
