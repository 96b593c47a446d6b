import numpy as np
import pytest

from online_learning.distribution import log_grid
from online_learning.experts.expert import Query
from online_learning.experts.network import NetworkExpert, NetworkSettings
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import Observation, Prompt
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings

GRID = log_grid()
PRIOR = ModelPrior(ModelPriorSettings()).prior("m")
CUES = {7: 30, 8: 300}
"""A single token among thirty that says the length."""


def query_of(cue: int, number: int, model: str = "m", tenant: str | None = None) -> Query:
    tokens = np.random.default_rng((cue, number)).integers(100, 5_000, 30).astype(np.uint32)
    tokens[number % 30] = cue
    prompt = Prompt(token_ids=tokens, prompt_tokens=30, max_tokens=2_000, temperature=0.7, model=model, tenant=tenant)
    return Query(prompt_features(prompt), model, PRIOR)


def median_tokens(head: NetworkExpert, query: Query) -> int:
    return int(GRID[np.searchsorted(np.cumsum(head.predict([query]).masses[0]), 0.5)])


def teach(head: NetworkExpert, count: int, *, tokens: int | None = None, censored: bool = False) -> None:
    generator = np.random.default_rng(2)
    for number in range(count):
        cue = int(generator.choice(list(CUES)))
        length = tokens or int(CUES[cue] * np.exp(0.2 * generator.normal()))
        head.learn(query_of(cue, number), Observation(length, censored=censored), judged=False)


def test_a_young_network_is_near_the_prior() -> None:
    """Before any answer its median is the prior's within a factor of 1.3."""
    head = NetworkExpert(GRID)
    prior_tokens = int(GRID[np.searchsorted(np.cumsum(PRIOR.mass), 0.5)])
    assert prior_tokens / 1.3 < median_tokens(head, query_of(7, 0)) < 1.3 * prior_tokens
    assert head.predict([query_of(7, 0)]).trust[0] == 0.0


def test_one_word_among_thirty_is_found() -> None:
    """Where a single token says the length and all others are noise, prompts never seen before are told apart."""
    head = NetworkExpert(GRID)
    teach(head, 2_000)
    short = np.mean([median_tokens(head, query_of(7, number)) for number in range(10_000, 10_020)])
    long = np.mean([median_tokens(head, query_of(8, number)) for number in range(10_000, 10_020)])
    assert short < 80
    assert long > 150


def test_cut_answers_are_learnt_as_at_least_so_long() -> None:
    """When every answer is cut at 400 tokens, longer ones become likelier than the prior has them."""
    head = NetworkExpert(GRID)
    teach(head, 800, tokens=400, censored=True)
    assert head.predict([query_of(7, 10_000)]).masses[0][GRID > 400].sum() > PRIOR.mass[GRID > 400].sum() + 0.2


def test_the_same_answers_make_the_same_network() -> None:
    """To the last bit: seeded, in order, on one thread."""
    one, other = NetworkExpert(GRID), NetworkExpert(GRID)
    for head in (one, other):
        teach(head, 200)
    np.testing.assert_array_equal(one.predict([query_of(7, 9)]).masses[0], other.predict([query_of(7, 9)]).masses[0])


def test_models_beyond_the_slots_share_one() -> None:
    """More models than slots are no error, and keep their own prior."""
    head = NetworkExpert(GRID, NetworkSettings(model_slots=2))
    for number in range(100):
        head.learn(query_of(7, number, f"model {number % 5}"), Observation(50, censored=False), judged=True)
    assert head.predict([query_of(7, 1, "model 4")]).masses[0].sum() == pytest.approx(1.0)
