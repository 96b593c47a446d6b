"""The mixture against its experts; the suite of all learners is in test_learners.py."""

from collections.abc import Iterator

import numpy as np
import pytest

from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.prequential import LearnerQuality, evaluate
from online_learning.length_learner import LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, solo_learners

pytestmark = pytest.mark.slow


def _prompt(family: int, number: int, tenant: str | None = None) -> Prompt:
    words = np.random.default_rng(family).integers(16, 32_000, 60)
    tokens = np.random.default_rng((family, number)).choice(words, 30).astype(np.uint32)
    return Prompt(token_ids=tokens, prompt_tokens=30, max_tokens=8_192, temperature=0.7, model="m", tenant=tenant)


def _families(count: int, medians: tuple[int, ...], first: int = 0) -> Iterator[tuple[Prompt, int]]:
    generator = np.random.default_rng(first + 5)
    for number in range(first, first + count):
        family = int(generator.integers(len(medians)))
        yield _prompt(family, number), 1 + int(medians[family] * np.exp(0.4 * generator.normal()))


def _blind(count: int) -> Iterator[tuple[Prompt, int]]:
    generator = np.random.default_rng(6)
    for number in range(count):
        yield _prompt(int(generator.integers(40)), number), 1 + int(150 * np.exp(generator.normal()))


def _scored(prompts: Iterator[tuple[Prompt, int]], learners: dict[str, LengthLearner]) -> dict[str, LearnerQuality]:
    return evaluate(prompts, learners, warmup=800, clock=lambda: 0.0).learners


def test_the_mixture_is_as_good_as_its_best_expert() -> None:
    """On families of 30, 150 and 700 tokens: within 0.01 nats of the best, and calibrated."""
    qualities = _scored(_families(2_000, (30, 150, 700)), {"mixture": MixtureLearner(), **solo_learners()})
    mixture = qualities.pop("mixture")
    assert mixture.log_score > max(quality.log_score for quality in qualities.values()) - 0.01
    assert 0.86 < mixture.coverage_90 < 0.94
    assert 0.45 < mixture.coverage_50 < 0.55
    assert set(mixture.expert_weights) == set(qualities)


def test_prompts_that_say_nothing_cost_hardly_anything() -> None:
    """Where lengths do not depend on prompts: CRPS within 1% of the global distribution's."""
    qualities = _scored(_blind(2_000), {"mixture": MixtureLearner(), "global": GlobalLearner()})
    assert qualities["mixture"].crps_tokens < 1.01 * qualities["global"].crps_tokens


def _coverage_after(learner: MixtureLearner, medians: tuple[int, ...], family: int, *, skipped: int) -> float:
    inside = []
    for prompt, tokens in _families(1_200, medians, first=10_000):
        features = learner.features(prompt)
        predicted = learner.predict_one(features, "m").distribution
        if prompt.token_ids[0] in np.random.default_rng(family).integers(16, 32_000, 60):
            inside.append(predicted.quantile(0.05) <= tokens <= predicted.quantile(0.95))
        learner.learn_one(features, "m", Observation(tokens, censored=False))
    return float(np.mean(inside[skipped:]))


def test_coverage_returns_after_a_drift() -> None:
    """One family's lengths x 3, another's x 0.3: 200 of its answers later the 90% interval holds 85% or more again."""
    learner = MixtureLearner()
    for prompt, tokens in _families(1_500, (30, 150, 700)):
        learner.learn_one(learner.features(prompt), "m", Observation(tokens, censored=False))
    assert _coverage_after(learner, (90, 150, 210), 0, skipped=200) > 0.85


def test_a_drift_is_told_of_the_prompt_s_cluster_whichever_expert_found_it() -> None:
    """Two families drift, each over many clusters; no event names anything but a cluster."""
    learner = MixtureLearner()
    found: dict[int, set[int | None]] = {}
    for medians in ((40, 300), (400, 30)):
        for number in range(1_000):
            family = number % 2
            prompt = _prompt(family, number, tenant=f"tenant-{family}")
            features = learner.features(prompt)
            length = medians[family] + number % 9
            for drift in learner.learn_one(features, prompt.model, Observation(length, censored=False)):
                found.setdefault(drift.cluster, set()).add(learner.predict_one(features, prompt.model).cluster)
    assert found, "the lengths of both families moved tenfold"
    assert all(cluster in clusters | {0} for cluster, clusters in found.items())
