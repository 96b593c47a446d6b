"""Corrections of predictions by embeddings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.distribution import log_grid
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.experts.semantic import SemanticHead, SemanticLearner, apart, with_embedding
from online_learning.features.prompt_features import grams, prompt_features
from online_learning.length_learner import Observation, Prompt

GRID = log_grid()
FLAT = np.full(GRID.size, 1.0 / GRID.size)


def _prompt(number: int) -> Prompt:
    tokens = np.random.default_rng(number).integers(0, 9_000, 40).astype(np.uint32)
    return Prompt(token_ids=tokens, prompt_tokens=40, max_tokens=4_000, temperature=1.0, model="m")


def _embedding(family: int, generator: np.random.Generator) -> np.ndarray:
    vector = np.random.default_rng(family).normal(size=24) + 0.3 * generator.normal(size=24)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 10_000), values=st.lists(st.floats(-1, 1), min_size=1, max_size=50).filter(any))
def test_features_and_embedding_come_apart_as_they_were(number: int, values: list[float]) -> None:
    """Whatever the prompt: plain features bit for bit, the embedding at unit length, a second one in place of the first."""
    plain = prompt_features(_prompt(number))
    once = with_embedding(plain, np.array([1.0, 2.0, 3.0], dtype=np.float32))
    features, embedding = apart(with_embedding(once, np.array(values, dtype=np.float32)))
    np.testing.assert_array_equal(features, plain)
    assert embedding is not None
    assert embedding.size == len(values)
    assert apart(plain)[1] is None
    assert grams(features)[0].size > 0


def test_hints_stay_with_the_features() -> None:
    """An embedding stands behind them, and goes without them."""
    prompt = Prompt(
        token_ids=np.arange(9, dtype=np.uint32),
        prompt_tokens=9,
        max_tokens=9,
        temperature=1.0,
        model="m",
        session="s",
        expected_output_tokens=5,
    )
    features, embedding = apart(with_embedding(prompt_features(prompt), np.ones(4, dtype=np.float32)))
    assert np.array_equal(features, prompt_features(prompt))
    assert embedding is not None


@settings(max_examples=50, deadline=None)
@given(
    answers=st.lists(st.tuples(st.integers(0, GRID.size - 1), st.booleans(), st.integers(0, 3)), max_size=60),
    bins=st.lists(st.floats(0, 1), min_size=GRID.size, max_size=GRID.size).filter(any),
)
def test_a_corrected_prediction_is_a_distribution(answers: list[tuple[int, bool, int]], bins: list[float]) -> None:
    """Whatever was learnt and predicted: no mass is negative, and all of it sums to 1."""
    head, generator = SemanticHead(), np.random.default_rng(0)
    mass = np.array(bins) / np.sum(bins)
    for position, censored, family in answers:
        head.learn(mass, _embedding(family, generator), position, censored=censored)
    refined = head.refine(mass, _embedding(1, generator))
    assert refined.min() >= 0.0
    assert refined.sum() == pytest.approx(1.0)


def test_the_gradient_is_that_of_the_likelihood() -> None:
    """The first step goes down the slope of the negative log-likelihood, for finished answers and cut ones."""
    generator = np.random.default_rng(3)
    for censored in (False, True):
        gains = []
        for _ in range(20):
            head, embedding, position = SemanticHead(), _embedding(int(generator.integers(9)), generator), 40

            def likelihood(head: SemanticHead, x: np.ndarray, *, censored: bool = censored) -> float:
                mass = head.refine(FLAT, x)
                return float(np.log(mass[40:].sum() if censored else mass[40]))

            before = likelihood(head, embedding)
            head.learn(FLAT, embedding, position, censored=censored)
            gains.append(likelihood(head, embedding) - before)
        assert min(gains) > 0.0


def test_embeddings_that_tell_lengths_are_used_and_cut_answers_count() -> None:
    """Two families of 50 and 500 tokens, a third of the long answers cut at 200: medians come out right."""
    learner, generator = SemanticLearner(GlobalLearner()), np.random.default_rng(1)
    for number in range(2_000):
        family = number % 2
        tokens = int((500 if family else 50) * np.exp(0.3 * generator.normal())) + 1
        censored = tokens > 200 and number % 3 == 0
        features = with_embedding(learner.features(_prompt(number)), _embedding(family, generator))
        learner.learn_one(features, "m", Observation(200 if censored else tokens, censored=censored))
    medians = [
        learner.predict_one(
            with_embedding(learner.features(_prompt(9_999)), _embedding(family, generator)), "m"
        ).distribution.quantile(0.5)
        for family in (0, 1)
    ]
    assert 35 < medians[0] < 75
    assert 350 < medians[1] < 700


def test_without_an_embedding_nothing_is_touched() -> None:
    """A learner that has corrections predicts of a prompt without an embedding what the other one does, to the bit."""
    plain, corrected = GlobalLearner(), SemanticLearner(GlobalLearner())
    generator = np.random.default_rng(2)
    for number in range(300):
        features, observation = plain.features(_prompt(number)), Observation(1 + number % 90, censored=number % 7 == 0)
        plain.learn_one(features, "m", observation)
        corrected.learn_one(with_embedding(features, _embedding(number % 3, generator)), "m", observation)
    features = plain.features(_prompt(1_000))
    ours, theirs = corrected.predict_one(features, "m"), plain.predict_one(features, "m")
    np.testing.assert_array_equal(ours.distribution.mass, theirs.distribution.mass)
    refined = corrected.predict_one(with_embedding(features, _embedding(1, generator)), "m")
    assert sum(refined.experts.values()) == pytest.approx(1.0)
    assert refined.experts["semantic"] > 0.0


@pytest.mark.slow
def test_embeddings_that_say_nothing_do_no_harm() -> None:
    """Random ones: the log score stays within 0.02 nats of the prediction's without them."""
    learner, generator = SemanticLearner(GlobalLearner()), np.random.default_rng(5)
    ours, theirs = [], []
    for number in range(3_000):
        tokens = int(100 * np.exp(0.7 * generator.normal())) + 1
        features = learner.features(_prompt(number % 50))
        with_it = with_embedding(features, generator.normal(size=24).astype(np.float32))
        position = int(np.searchsorted(GRID, tokens))
        if number >= 1_000:
            ours.append(np.log(learner.predict_one(with_it, "m").distribution.mass[position]))
            theirs.append(np.log(learner.predict_one(features, "m").distribution.mass[position]))
        learner.learn_one(with_it, "m", Observation(tokens, censored=False))
    assert np.mean(ours) > np.mean(theirs) - 0.02


def test_another_encoder_resets_the_correction() -> None:
    """Embeddings of another size: the correction of the first is gone, and the second is learnt."""
    head, generator = SemanticHead(), np.random.default_rng(6)
    for _ in range(50):
        head.learn(FLAT, _embedding(1, generator), 20, censored=False)
    other = np.ones(5, dtype=np.float32)
    np.testing.assert_array_equal(head.refine(FLAT, other), FLAT)
    head.learn(FLAT, other, 20, censored=False)
    assert head.refine(FLAT, other)[20] > FLAT[20]
    np.testing.assert_array_equal(head.refine(FLAT, _embedding(1, generator)), FLAT)
