"""Experts that speak only now and then: they help where they speak, and are not felt elsewhere."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from online_learning.clustering.clusters import ClusterSettings
from online_learning.length_learner import Forecast, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings
from online_learning.mixture.settings import LearnerSettings

SMALL = MixtureSettings(
    common=LearnerSettings(clusters=ClusterSettings(clusters=6, early_seed_prompts=(30,), seed_prompts=60)),
    judge_all=100,
)


def prompt(number: int, session: str | None = None, expected: int | None = None, max_tokens: int = 10_000) -> Prompt:
    """A prompt whose words tell nothing."""
    return Prompt(
        token_ids=np.random.default_rng(number).integers(16, 32_000, 20).astype(np.uint32),
        prompt_tokens=20,
        max_tokens=max_tokens,
        temperature=1.0,
        model="m",
        tenant="t",
        session=session,
        expected_output_tokens=expected,
    )


def stream(count: int, *, hinted: float) -> Iterator[tuple[Prompt, Observation]]:
    """Answers whose level is their session's, as far as requests say of which session they are."""
    generator = np.random.default_rng(3)
    levels = 5.0 + generator.normal(size=1_000)
    for number in range(count):
        session = number // 50 * 10 + int(generator.integers(10))
        length = max(1, round(np.exp(levels[session] + 0.3 * generator.normal())))
        expected = max(1, round(length * np.exp(0.7 + 0.4 * generator.normal())))
        says = generator.random(2) < hinted
        told = prompt(number, f"s{session}" if says[0] else None, expected if says[1] else None)
        yield told, Observation(length, censored=number % 9 == 8)


def run(learner: MixtureLearner, requests: Iterator[tuple[Prompt, Observation]]) -> list[Forecast]:
    """Predict, then teach, each in its turn."""
    forecasts = []
    for asked, observation in requests:
        features = learner.features(asked)
        forecasts.append(learner.predict_one(features, "m"))
        learner.learn_one(features, "m", observation)
    return forecasts


def log_score(forecasts: list[Forecast], requests: Iterator[tuple[Prompt, Observation]]) -> float:
    """Mean log score of the predictions of answers that ended, after the first 200."""
    scores = [
        np.log(forecast.distribution.mass[forecast.distribution.lengths.searchsorted(observation.output_tokens)])
        for forecast, (_, observation) in list(zip(forecasts, requests, strict=True))[200:]
        if not observation.censored
    ]
    return float(np.mean(scores))


def assert_equal(ours: Forecast, theirs: Forecast) -> None:
    """To the last digit."""
    assert np.array_equal(ours.distribution.mass, theirs.distribution.mass)
    assert (ours.experts, ours.cluster, ours.evidence) == (theirs.experts, theirs.cluster, theirs.evidence)


def test_without_hints_nothing_is_other_than_without_specialists() -> None:
    """Every prediction to the last digit, and its experts by name and weight."""
    with_them = run(MixtureLearner(SMALL), stream(400, hinted=0.0))
    without = run(MixtureLearner(SMALL, specialists=[]), stream(400, hinted=0.0))
    for ours, theirs in zip(with_them, without, strict=True):
        assert_equal(ours, theirs)


def test_what_requests_without_hints_are_predicted_does_not_depend_on_others_hints() -> None:
    """The other experts learn from the same answers, whether there are hints or not."""
    told, untold = MixtureLearner(SMALL), MixtureLearner(SMALL)
    run(told, stream(400, hinted=0.5))
    run(
        untold,
        ((replace(asked, session=None, expected_output_tokens=None), said) for asked, said in stream(400, hinted=0.5)),
    )
    for number in range(400, 420):
        features = told.features(prompt(number))
        assert_equal(told.predict_one(features, "m"), untold.predict_one(features, "m"))


def test_each_specialist_is_worth_its_weight() -> None:
    """The log score with both is well above that without, and neither has any where its hint is missing."""
    both = run(MixtureLearner(SMALL), stream(900, hinted=0.7))
    neither = run(MixtureLearner(SMALL, specialists=[]), stream(900, hinted=0.7))
    gain = log_score(both, stream(900, hinted=0.7)) - log_score(neither, stream(900, hinted=0.7))
    assert gain > 0.4
    for forecast, (asked, _) in list(zip(both, stream(900, hinted=0.7), strict=True))[200:]:
        assert ("client says" in forecast.experts) == (asked.expected_output_tokens is not None)
        assert sum(forecast.experts.values()) == pytest.approx(1.0)


def test_one_that_was_silent_for_long_has_the_weight_that_it_had() -> None:
    """A thousand requests without hints neither raise nor lower what it is believed."""
    learner = MixtureLearner(SMALL)
    run(learner, stream(300, hinted=1.0))
    asked = learner.features(prompt(1, "s299", 300))
    before = learner.predict_one(asked, "m").experts
    run(learner, stream(1_000, hinted=0.0))
    after = learner.predict_one(asked, "m").experts
    assert after["client says"] == before["client says"]
    assert before["client says"] > 0.5


def test_lengths_that_mean_nothing_hardly_hurt() -> None:
    """A client's numbers and sessions drawn at random: within 0.02 nats of the mixture that cannot see them."""

    def noise(count: int) -> Iterator[tuple[Prompt, Observation]]:
        generator = np.random.default_rng(8)
        for number in range(count):
            length = max(1, round(np.exp(5.0 + generator.normal())))
            expected = max(1, round(np.exp(5.0 + generator.normal())))
            told = prompt(number, f"s{generator.integers(50)}", expected)
            yield told, Observation(length, censored=False)

    with_them = log_score(run(MixtureLearner(SMALL), noise(1_200)), noise(1_200))
    without = log_score(run(MixtureLearner(SMALL, specialists=[]), noise(1_200)), noise(1_200))
    assert with_them > without - 0.02
