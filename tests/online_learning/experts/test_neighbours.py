import numpy as np
import pytest

from online_learning.distribution import log_grid
from online_learning.experts.expert import ExpertPredictions, Query
from online_learning.experts.neighbours import NeighbourExpert, NeighbourSettings
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import Features, Observation, Prompt
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings

GRID = log_grid()
PRIOR = ModelPrior(ModelPriorSettings()).prior("m")
SETTINGS = NeighbourSettings(fit_prompts=(40, 120))


def features_of(family: int, number: int) -> Features:
    """A prompt of 30 words out of its family's 40."""
    words = np.random.default_rng(family).integers(16, 32_000, 40)
    tokens = np.random.default_rng((family, number)).choice(words, 30).astype(np.uint32)
    return prompt_features(Prompt(token_ids=tokens, prompt_tokens=30, max_tokens=2_000, temperature=0.7, model="m"))


def query_of(family: int, number: int, model: str = "m") -> Query:
    return Query(features_of(family, number), model, PRIOR)


def median_tokens(predicted: ExpertPredictions) -> int:
    return int(GRID[np.searchsorted(np.cumsum(predicted.masses[0]), 0.5)])


def teach(expert: NeighbourExpert, count: int, lengths: dict[int, int], model: str = "m") -> None:
    for number in range(count):
        family = number % len(lengths)
        observation = Observation(lengths[family], censored=False)
        expert.learn(query_of(family, number, model), observation, judged=True)


def test_near_prompts_predict() -> None:
    """Two families of 40 and 800 tokens: each prompt gets its own family's length."""
    expert = NeighbourExpert(GRID, SETTINGS)
    teach(expert, 300, {0: 40, 1: 800})
    assert 38 <= median_tokens(expert.predict([query_of(0, 9_999)])) <= 44
    assert 780 <= median_tokens(expert.predict([query_of(1, 9_999)])) <= 900


def test_until_feature_space_is_fitted_it_has_nothing_to_say() -> None:
    """39 prompts of 40: the prior, and no evidence."""
    expert = NeighbourExpert(GRID, SETTINGS)
    teach(expert, 39, {0: 40, 1: 800})
    predicted = expert.predict([query_of(0, 9_999)])
    assert (predicted.evidence[0], predicted.trust[0]) == (0.0, 0.0)
    np.testing.assert_array_equal(predicted.masses[0], PRIOR.mass)


def test_the_oldest_make_room() -> None:
    """With room for 150, a family taught before the last 150 prompts is forgotten."""
    expert = NeighbourExpert(GRID, NeighbourSettings(history_prompts=150, fit_prompts=(40, 120)))
    teach(expert, 100, {0: 40})
    for number in range(150):
        expert.learn(query_of(1, number), Observation(800, censored=False), judged=True)
    assert median_tokens(expert.predict([query_of(0, 9_999)])) > 700


def test_what_another_model_said_is_shifted_to_this_one() -> None:
    """A talkative model answers everything ten times as long: a family that only the other one saw is scaled."""
    expert = NeighbourExpert(GRID, SETTINGS)
    teach(expert, 300, {0: 40, 1: 160, 2: 640}, "terse")
    for number in range(100):
        expert.learn(
            query_of(number % 2, number, "m"), Observation((400, 1_600)[number % 2], censored=False), judged=True
        )
    assert median_tokens(expert.predict([query_of(2, 9_999)])) > 1_800


@pytest.mark.parametrize(("cut_tokens", "least_tokens"), [(100, 100), (900, 900)])
def test_cut_answers_are_known_to_be_longer(cut_tokens: int, least_tokens: int) -> None:
    """Neighbours that were all cut make answers predicted longer than the cut."""
    expert = NeighbourExpert(GRID, SETTINGS)
    for number in range(200):
        expert.learn(query_of(0, number), Observation(cut_tokens, censored=True), judged=True)
    predicted = expert.predict([query_of(0, 9_999)])
    assert predicted.masses[0][least_tokens < GRID].sum() > 0.8


def test_unjudged_answers_teach_too() -> None:
    """They enter the history; only bandwidths and strengths are not scored by them."""
    expert = NeighbourExpert(GRID, SETTINGS)
    for number in range(200):
        result = expert.learn(query_of(0, number), Observation(40, censored=False), judged=False)
        assert result.scored_prediction is None
    assert expert.predict([query_of(0, 9_999)]).evidence[0] > 30.0
