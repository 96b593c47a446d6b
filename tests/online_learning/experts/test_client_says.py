"""What lengths that clients expect tell of answers, once it is known how they turned out."""

import numpy as np
import pytest

from online_learning.distribution import FloatArray, LengthDistribution, log_grid
from online_learning.experts.client_says import ClientSaysExpert, ClientSettings
from online_learning.experts.specialist import HintedQuery
from online_learning.features.request_hints import RequestHints
from online_learning.length_learner import Observation

GRID = log_grid()
BROAD: FloatArray = np.full(GRID.size, 1.0 / GRID.size)


def query(expected: int | None, tenant: int = 0, model: str = "m") -> HintedQuery:
    return HintedQuery(RequestHints(tenant, None, expected), model, BROAD)


def predicted(expert: ClientSaysExpert, asked: HintedQuery) -> LengthDistribution:
    return LengthDistribution(GRID, expert.predict(asked))


def test_it_is_silent_where_nothing_is_expected_and_before_it_knows_anything() -> None:
    """And about a model of which it knows nothing."""
    expert = ClientSaysExpert(GRID)
    assert not expert.speaks(query(100).hints, "m")
    expert.learn(query(None), Observation(9, censored=False))
    assert not expert.speaks(query(100).hints, "m")
    expert.learn(query(100), Observation(90, censored=False))
    assert expert.speaks(query(50).hints, "m")
    assert not expert.speaks(query(None).hints, "m")
    assert not expert.speaks(query(50).hints, "n")


def test_clients_that_expect_twice_too_much_are_corrected() -> None:
    """At lengths that nobody has expected yet, too."""
    expert, generator = ClientSaysExpert(GRID), np.random.default_rng(1)
    for _ in range(300):
        expected = int(np.exp(generator.uniform(3.0, 6.0)))
        length = max(1, round(0.5 * expected * np.exp(0.2 * generator.normal())))
        expert.learn(query(expected), Observation(length, censored=False))
    for expected in (60, 2_000):
        distribution = predicted(expert, query(expected))
        assert distribution.quantile(0.5) == pytest.approx(expected / 2, rel=0.2)
        low, high = distribution.quantiles((0.05, 0.95))
        assert high / low < 4.0


def test_a_client_that_always_says_the_same_tells_the_spread_of_its_answers() -> None:
    """The number is not believed."""
    expert, generator = ClientSaysExpert(GRID), np.random.default_rng(1)
    lengths = np.exp(5.0 + generator.normal(size=500))
    for length in lengths:
        expert.learn(query(4_096), Observation(max(1, round(length)), censored=False))
    found = predicted(expert, query(4_096)).quantiles((0.1, 0.5, 0.9))
    for quantile, truth in zip(found, np.quantile(lengths, (0.1, 0.5, 0.9)), strict=True):
        assert quantile == pytest.approx(truth, rel=0.35)  # The grid's bins are 12 % wide.


def test_tenants_are_told_apart() -> None:
    """One knows its answers, another sends numbers without meaning."""
    expert, generator = ClientSaysExpert(GRID), np.random.default_rng(1)
    for _ in range(400):
        length = max(1, round(np.exp(5.0 + generator.normal())))
        expert.learn(query(length, tenant=1), Observation(length, censored=False))
        other = max(1, round(np.exp(5.0 + generator.normal())))
        expert.learn(query(other, tenant=2), Observation(length, censored=False))
    knows, guesses = (predicted(expert, query(200, tenant)).quantiles((0.05, 0.95)) for tenant in (1, 2))
    assert knows[1] / knows[0] < 2.0
    assert guesses[1] / guesses[0] > 8.0


def test_an_answer_that_was_cut_counts_as_at_least_so_long() -> None:
    """Answers cut at what was expected say that it is too little."""
    expert = ClientSaysExpert(GRID)
    for _ in range(100):
        expert.learn(query(100), Observation(100, censored=True))
    assert predicted(expert, query(100)).survival(100) > 0.9


def test_the_tenants_remembered_are_bounded() -> None:
    """The one that was taught longest ago is forgotten first: what it says is then the model's."""
    expert = ClientSaysExpert(GRID, ClientSettings(max_tenants=2))
    for tenant in (1, 2, 3):
        for _ in range(50):
            expert.learn(query(100, tenant), Observation(100 * tenant, censored=False))
    assert predicted(expert, query(100, 1)).mean_tokens == predicted(expert, query(100)).mean_tokens
    assert predicted(expert, query(100, 3)).mean_tokens != predicted(expert, query(100)).mean_tokens


@pytest.mark.parametrize("expected", [1, 131_072, 4_194_303])
@pytest.mark.parametrize("tokens", [1, 10**9])
def test_masses_are_whole(expected: int, tokens: int) -> None:
    """Beyond all ratios that are told apart, too."""
    expert = ClientSaysExpert(GRID)
    for censored in (False, True):
        expert.learn(query(expected, tenant=1), Observation(tokens, censored=censored))
        mass = expert.predict(query(expected, tenant=1))
        assert mass.min() >= 0.0
        assert mass.sum() == pytest.approx(1.0)
