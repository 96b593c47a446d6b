"""Predictions that are made together are those made one by one, to the last digit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.clustering.clusters import ClusterSettings
from online_learning.experts.neighbours import NeighbourSettings
from online_learning.length_learner import Forecast, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings
from online_learning.mixture.settings import LearnerSettings

CLUSTERS = ClusterSettings(clusters=6, early_seed_prompts=(20,), seed_prompts=40, fewest_prompts=4, check_prompts=24)
NEIGHBOURS = NeighbourSettings(history_prompts=100, fit_prompts=(25, 60))
SETTINGS = MixtureSettings(common=LearnerSettings(clusters=CLUSTERS), neighbours=NEIGHBOURS)

part = st.tuples(st.integers(1, 12), st.sampled_from(["one", "other"]), st.integers(0, 10_000))
"""Number of prompts that come together, their model, and the seed of what is in them."""


def prompt_of(generator: np.random.Generator, model: str) -> Prompt:
    family, size = int(generator.integers(4)), int(generator.integers(1, 400))
    tokens = (1_000 * family + generator.integers(0, 60, size)).astype(np.uint32)
    tenant = f"tenant {family}" if family % 2 else None
    return Prompt(
        token_ids=tokens, prompt_tokens=size, max_tokens=int(generator.integers(1, 4_000)), temperature=0.5,
        model=model, tenant=tenant,
    )  # fmt: skip


def assert_same(one: Forecast, other: Forecast) -> None:
    np.testing.assert_array_equal(one.distribution.mass, other.distribution.mass)
    assert (one.cluster, one.evidence, one.experts) == (other.cluster, other.evidence, other.experts)
    assert one.at_risk is not None
    assert other.at_risk is not None
    assert one.at_risk.learnt == other.at_risk.learnt
    np.testing.assert_array_equal(one.at_risk.model, other.at_risk.model)
    for mine, theirs in ((one.at_risk.cluster, other.at_risk.cluster), (one.at_risk.drawn, other.at_risk.drawn)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            np.testing.assert_array_equal(mine, theirs)


@settings(max_examples=12, deadline=None)
@given(parts=st.lists(part, min_size=10, max_size=30))
def test_together_is_one_by_one_to_the_last_digit(parts: list[tuple[int, str, int]]) -> None:
    """For prompts of any size in any cuts, with learning in between, over the forming of clusters and feature spaces."""
    learner = MixtureLearner(SETTINGS)
    for count, model, seed in parts:
        generator = np.random.default_rng(seed)
        features = [learner.features(prompt_of(generator, model)) for _ in range(count)]
        together = learner.predict_many(features, model)
        for prompt, forecast in zip(features, together, strict=True):
            assert_same(learner.predict_one(prompt, model), forecast)
        for prompt in features:
            tokens = int(generator.lognormal(5.0, 1.0)) + 1
            learner.learn_one(prompt, model, Observation(tokens, censored=bool(generator.random() < 0.2)))
