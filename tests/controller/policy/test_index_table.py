import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy.cost import CostModel
from controller.policy.gittins import gittins_index
from controller.policy.index_table import SAME, expected_cost_s, index_table
from controller.policy.policy import RequestFacts
from online_learning.distribution import LengthDistribution, log_grid

COST = CostModel(kv_token_step_s=1e-6, slot_step_s=1e-5, prefill_token_s=1e-4)
GRID = log_grid(4000)


def facts(max_tokens: int = 4000, prompt_tokens: int = 200) -> RequestFacts:
    """A request."""
    return RequestFacts(request_id="r", prompt_tokens=prompt_tokens, max_tokens=max_tokens)


@st.composite
def distributions(draw: st.DrawFn) -> LengthDistribution:
    """Any mass on the grid, with holes, cut or not at a max_tokens."""
    weights = draw(st.lists(st.sampled_from([0.0, 1e-12, 1e-4, 0.1, 1.0]), min_size=GRID.size, max_size=GRID.size))
    weights[draw(st.integers(0, GRID.size - 1))] = 1.0
    mass = np.array(weights)
    predicted = LengthDistribution(GRID, mass / mass.sum())
    return predicted.cut(draw(st.sampled_from([1, 7, 300, 4000])))


@given(distributions(), st.sampled_from([1, 7, 300, 4000, 50_000]), st.sampled_from([None, 200]), st.integers(0, 64))
def test_a_table_is_always_finite_positive_and_a_step_function(
    predicted: LengthDistribution, max_tokens: int, refresh_tokens: int | None, horizon_tokens: int
) -> None:
    """For any predicted distribution, the engine gets numbers that it can sort by and add up."""
    cut = predicted.cut(max_tokens)
    table = index_table(facts(max_tokens), cut, COST, horizon_tokens=horizon_tokens, refresh_tokens=refresh_tokens)
    assert table.attained_tokens[0] == 0
    assert list(table.attained_tokens) == sorted(set(table.attained_tokens))
    assert table.attained_tokens[-1] < max(1, max_tokens)
    assert len(table.attained_tokens) == len(table.index_s) == len(table.growth_tokens)
    assert all(np.isfinite(index) and index > 0.0 for index in table.index_s)
    assert all(0.0 <= growth <= horizon_tokens + 1e-9 for growth in table.growth_tokens)
    if refresh_tokens is not None:
        assert all(attained % refresh_tokens == 0 for attained in table.attained_tokens)


@given(distributions())
def test_at_every_edge_the_table_has_the_index_and_growth_of_the_definition(predicted: LengthDistribution) -> None:
    """Leaving out entries changes neither by more than the stated tolerance; growth is checked by brute force."""
    request = facts(int(predicted.lengths[-1]))
    table = index_table(request, predicted, COST, horizon_tokens=32)
    ages = np.concatenate([[0], predicted.lengths])
    mass = np.concatenate([[0.0], predicted.mass])
    index_s = gittins_index(COST.total_s(request.prompt_tokens, ages), mass)
    for position, age in enumerate(ages[:-1].tolist()):
        if predicted.survival(age) <= 1e-9:
            continue
        at = table.entry(age)
        given_age = predicted.given(age)
        growth = float(np.minimum(given_age.lengths - age, 32) @ given_age.mass)
        assert table.index_s[at] == pytest.approx(index_s[position], rel=1.02 * SAME)
        assert table.growth_tokens[at] == pytest.approx(growth, rel=1.02 * SAME)


@given(distributions(), st.sampled_from([None, 200]))
def test_what_outlived_its_prediction_is_never_favoured(
    predicted: LengthDistribution, refresh_tokens: int | None
) -> None:
    """Beyond every predicted length the index is at least the highest that the request had up to there."""
    table = index_table(facts(50_000), predicted, COST, horizon_tokens=32, refresh_tokens=refresh_tokens)
    possible = [predicted.survival(attained) > 1e-9 for attained in table.attained_tokens]
    highest = max(index for index, alive in zip(table.index_s, possible, strict=True) if alive)
    assert not possible[-1]
    assert all(index >= highest for index, alive in zip(table.index_s, possible, strict=True) if not alive)


def test_the_longer_it_outlives_the_worse_its_index() -> None:
    """Twice as long beyond every sample is predicted to last twice as long again."""
    predicted = LengthDistribution(np.array([10, 20]), np.array([0.5, 0.5]))
    table = index_table(facts(10_000), predicted, COST, horizon_tokens=32)
    outlived = [table.index_s[table.entry(attained)] for attained in (20, 40, 80, 160, 320)]
    assert outlived == sorted(outlived)
    assert outlived[-1] > 5 * outlived[0]


def test_prefill_counts_until_the_first_token() -> None:
    """A long prompt weighs on the index of a waiting request and no longer on that of a running one."""
    predicted = LengthDistribution(np.array([50]), np.array([1.0]))
    table = index_table(facts(prompt_tokens=1000), predicted, COST, horizon_tokens=32)
    assert table.index_s[0] == pytest.approx(COST.total_s(1000, np.array([50]))[0])
    with_one_token = index_table(
        facts(prompt_tokens=1000),
        LengthDistribution(np.array([1, 50]), np.array([1e-6, 1.0 - 1e-6])),
        COST,
        horizon_tokens=32,
    )
    assert with_one_token.index_s[with_one_token.entry(1)] < 0.5 * table.index_s[0]


def test_the_expected_cost_is_the_mean_over_the_prediction() -> None:
    """Prefill once, then the mean of the answer's cost."""
    predicted = LengthDistribution(np.array([10, 100]), np.array([0.25, 0.75]))
    by_hand = sum(p * COST.total_s(200, np.array([n]))[0] for n, p in ((10, 0.25), (100, 0.75)))
    assert expected_cost_s(facts(), predicted, COST) == pytest.approx(by_hand)


def test_a_table_of_a_smooth_prediction_is_small() -> None:
    """What crosses the border per request stays well below a hundred entries."""
    mass = 1.0 / GRID.astype(float)
    table = index_table(facts(), LengthDistribution(GRID, mass / mass.sum()), COST, horizon_tokens=32)
    assert 5 < len(table.attained_tokens) <= GRID.size
