import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_learning.distribution import log_grid
from online_learning.experts.expert import Query
from online_learning.experts.quantile_bands import QuantileBandExpert, QuantileBandSettings
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import Observation, Prompt
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings, Prior

GRID = log_grid()
PRIOR = ModelPrior(ModelPriorSettings()).prior("m")
CUES = {7: 30, 8: 300}
"""A single token among thirty that says the length."""


def query_of(cue: int, number: int, prior: Prior = PRIOR, model: str = "m") -> Query:
    tokens = np.random.default_rng((cue, number)).integers(100, 5_000, 30).astype(np.uint32)
    tokens[number % 30] = cue
    prompt = Prompt(token_ids=tokens, prompt_tokens=30, max_tokens=2_000, temperature=0.7, model=model)
    return Query(prompt_features(prompt), model, prior)


def median_tokens(expert: QuantileBandExpert, query: Query) -> int:
    return int(GRID[np.searchsorted(np.cumsum(expert.predict([query]).masses[0]), 0.5)])


def teach(expert: QuantileBandExpert, count: int) -> None:
    generator = np.random.default_rng(2)
    for number in range(count):
        cue = int(generator.choice(list(CUES)))
        length = int(CUES[cue] * np.exp(0.2 * generator.normal()))
        expert.learn(query_of(cue, number), Observation(length, censored=False), judged=False)


def test_before_any_answer_it_is_the_prior() -> None:
    """To the accuracy of float32."""
    expert = QuantileBandExpert(GRID)
    np.testing.assert_allclose(expert.predict([query_of(7, 0)]).masses[0], PRIOR.mass, atol=1e-6)
    assert expert.predict([query_of(7, 0)]).trust[0] == 0.0


def test_one_word_among_thirty_is_found() -> None:
    """Where a single token says the length and all others are noise, prompts never seen before are told apart."""
    expert = QuantileBandExpert(GRID)
    teach(expert, 2_000)
    short = np.mean([median_tokens(expert, query_of(7, number)) for number in range(10_000, 10_020)])
    long = np.mean([median_tokens(expert, query_of(8, number)) for number in range(10_000, 10_020)])
    assert short < 80
    assert long > 150


def test_cut_answers_are_learnt_as_at_least_so_long() -> None:
    """When every answer is cut at 400 tokens, longer ones become likelier than the prior has them."""
    expert = QuantileBandExpert(GRID)
    for number in range(500):
        expert.learn(query_of(7, number), Observation(400, censored=True), judged=False)
    assert expert.predict([query_of(7, 10_000)]).masses[0][GRID > 400].sum() > PRIOR.mass[GRID > 400].sum() + 0.2


def test_what_a_word_says_holds_for_a_model_of_other_lengths() -> None:
    """Bands are quantiles: a word that means short for one model means short for one that answers at more length."""
    expert = QuantileBandExpert(GRID)
    teach(expert, 2_000)
    longer = Prior.of(np.concatenate((np.full(10, 1e-6), PRIOR.hazard[:-10])))
    short, long = (median_tokens(expert, query_of(cue, 10_000, longer, "n")) for cue in CUES)
    middle = int(GRID[np.searchsorted(np.cumsum(longer.mass), 0.5)])
    assert short < middle < long


@given(position=st.integers(0, GRID.size - 1), censored=st.booleans(), bands=st.integers(2, 30))
def test_a_prediction_has_mass_wherever_the_prior_has(position: int, *, censored: bool, bands: int) -> None:
    """Also when the prior is nearly a point mass, which leaves bands empty; and it sums to 1."""
    hazard = np.full(GRID.size, 1e-6)
    hazard[position] = 1.0 - 1e-6
    prior = Prior.of(hazard)
    expert = QuantileBandExpert(GRID, QuantileBandSettings(bands=bands))
    for number in range(5):
        query = query_of(7, number, prior)
        expert.learn(query, Observation(int(GRID[position]), censored=censored), judged=True)
        mass = expert.predict([query]).masses[0]
        assert mass.sum() == pytest.approx(1.0)
        assert bool((mass[prior.mass > 1e-9] > 0.0).all())
