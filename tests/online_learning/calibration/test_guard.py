"""The guard against predictors that are right, wrong, and right again; their answers come from known distributions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_learning.calibration.calibration import CalibrationBook, Judgement, judge
from online_learning.calibration.guard import Guard, GuardSettings, why_not
from online_learning.distribution import LengthDistribution, log_grid
from online_learning.length_learner import Observation

GRID = log_grid(8_192)
FAMILIES = 6


def family(number: int) -> LengthDistribution:
    """Log-normal lengths around 20, 50, 120, 300, 760 or 1900 tokens."""
    mass = np.exp(-0.5 * ((np.log(GRID) - np.log(20.0 * 2.5**number)) / 0.7) ** 2)
    return LengthDistribution(GRID, mass / mass.sum())


TRUTH = [family(number) for number in range(FAMILIES)]
PRIOR = LengthDistribution(GRID, np.mean([each.mass for each in TRUTH], axis=0))


def judgements(
    answers: int, seed: int, *, shift: int = 0, cut: bool = False, trusted: bool = True
) -> Iterator[tuple[int, Judgement]]:
    """Answers of random families, each predicted by the truth of the family ``shift`` places on."""
    generator = np.random.default_rng(seed)
    for number in generator.integers(0, FAMILIES, answers):
        tokens = int(generator.choice(GRID, p=TRUTH[number].mass))
        limit = int(generator.integers(1, 4_000)) if cut else 10_000
        observation = Observation(min(tokens, limit), censored=tokens >= limit)
        predicted = TRUTH[(number + shift) % FAMILIES]
        yield int(number), judge(predicted, PRIOR, observation, trusted=trusted, uniform=generator.random())


def _trusts_model(book: CalibrationBook) -> bool:
    book.due(0.0)
    return next(found.trusted for found in book.latest() if found.scope.kind == "model")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cut", [False, True])
def test_a_calibrated_predictor_is_never_distrusted(seed: int, cut: bool) -> None:
    """Neither for a model nor for any of its clusters, over 10,000 answers, also when many of them are cut."""
    book = CalibrationBook()
    for cluster, judgement in judgements(10_000, seed, cut=cut):
        assert book.record("m", cluster, judgement) == []
    assert _trusts_model(book)
    assert all(book.trusts_cluster("m", cluster) for cluster in range(FAMILIES))


@pytest.mark.parametrize("seed", range(3))
def test_a_predictor_that_says_no_more_than_the_prior_is_trusted(seed: int) -> None:
    """It does no harm: prompts that say nothing are no reason to give up the order."""
    book = CalibrationBook()
    generator = np.random.default_rng(seed)
    for _ in range(5_000):
        observation = Observation(int(generator.choice(GRID, p=PRIOR.mass)), censored=False)
        assert book.record("m", 0, judge(PRIOR, PRIOR, observation, trusted=True, uniform=generator.random())) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [2, 3, 4])
def test_garbage_is_distrusted_within_a_hundred_answers(seed: int, shift: int) -> None:
    """Predictions that belong to other prompts: the model within 100 answers, every cluster within 100 of its own."""
    book = CalibrationBook()
    needed: dict[str | int, int] = {}
    seen = dict.fromkeys(range(FAMILIES), 0)
    for total, (cluster, judgement) in enumerate(judgements(FAMILIES * 130, seed, shift=shift), start=1):
        seen[cluster] += 1
        for measurement in book.record("m", cluster, judgement):
            assert not measurement.trusted
            assert measurement.reason
            scope = measurement.scope
            needed["m" if scope.kind == "model" else cluster] = total if scope.kind == "model" else seen[cluster]
    assert max(needed.values()) <= 100
    assert set(needed) == {"m", *range(FAMILIES)}


@pytest.mark.parametrize("seed", range(5))
def test_trust_returns_within_two_hundred_answers_of_being_right_again(seed: int) -> None:
    """Once, and it stays."""
    book = CalibrationBook()
    for _, judgement in judgements(300, seed, shift=2):
        book.record("m", 0, judgement)
    assert not _trusts_model(book)
    assert not book.trusts_cluster("m", 0)
    changes = [
        (number, change.scope.kind, change.trusted)
        for number, (_, judgement) in enumerate(judgements(3_000, seed + 100), start=1)
        for change in book.record("m", 0, judgement)
    ]
    assert {kind for _, kind, _ in changes} == {"model", "rest"} or {kind for _, kind, _ in changes} == {
        "model",
        "cluster",
    }
    assert all(trusted for _, _, trusted in changes)
    assert len(changes) == 2
    assert max(number for number, _, _ in changes) <= 400


def test_a_distrusted_model_recovers_by_serving_its_prior() -> None:
    """While the learner stays wrong but the prior stands in for it, the model may be ordered again, its clusters not."""
    book = CalibrationBook()
    for cluster, judgement in judgements(1_500, 7, shift=2):
        book.record("m", cluster, judgement)
    assert not _trusts_model(book)
    for cluster, judgement in judgements(600, 8, shift=2, trusted=False):
        book.record("m", cluster, judgement)
    assert _trusts_model(book)
    assert not any(book.trusts_cluster("m", cluster) for cluster in range(FAMILIES))


def test_what_a_young_learner_guessed_is_not_held_against_it() -> None:
    """Requests that came in a burst at the start were all predicted before anything was known."""
    book = CalibrationBook()
    for cluster, judgement in judgements(1_000, 9, shift=3):
        assert book.record("m", cluster, replace(judgement, ripe=False)) == []


def test_a_cluster_keeps_predictions_that_are_too_sure_but_better_than_the_prior() -> None:
    """Its fallback would be worse; a model with the same figures is not ordered by them."""
    settings = GuardSettings()
    window = np.array([[0.3, 0.6, 0.8]] * 200)
    assert why_not(window, settings, needs_coverage=False) is None
    assert why_not(window, settings, needs_coverage=True) is not None


def test_a_guard_that_is_switched_off_trusts_everything() -> None:
    """The operator's choice."""
    guard = Guard(GuardSettings(enabled=False), needs_coverage=True)
    for _, judgement in judgements(500, 1, shift=3):
        assert not guard.observe(judgement.score, judgement.prior_log_score)
    assert guard.trusted


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(-5, 5))
def test_more_of_the_same_evidence_never_restores_trust(
    answers: int, coverage_50: float, coverage_90: float, advantage: float
) -> None:
    """What condemns a window condemns a longer one with the same means; better figures never condemn."""
    settings = GuardSettings()
    short = np.array([[coverage_50, coverage_90, advantage]] * answers)
    if why_not(short, settings, needs_coverage=True) is not None:
        assert why_not(np.tile(short, (2, 1)), settings, needs_coverage=True) is not None
    assert why_not(np.array([[0.5, 0.9, 0.0]] * answers), settings, needs_coverage=True) is None
