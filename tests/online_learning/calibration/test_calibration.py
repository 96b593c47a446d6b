"""Windows of judgements: what they measure, and their bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from online_learning.calibration.calibration import CalibrationBook, CalibrationSettings, Measurement, Scope, judge
from online_learning.calibration.scoring import (
    PINBALL_PROBABILITIES,
    crps_tokens,
    kendall_tau,
    mean_pinball_tokens,
    summarise,
)
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Observation

LENGTHS = np.array([5, 10, 20, 40, 80])
UNIFORM = LengthDistribution(LENGTHS, np.full(5, 0.2))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=30))
def test_tau_of_complete_lengths_is_scipys(pairs: list[tuple[int, int]]) -> None:
    """With ties in both; where it is undefined there, it is 0 here."""
    medians, lengths = zip(*pairs, strict=True)
    expected = 0.0 if len(set(medians)) < 2 or len(set(lengths)) < 2 else float(kendalltau(medians, lengths)[0])
    assert kendall_tau(medians, lengths, [False] * len(pairs)) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.booleans()), min_size=2, max_size=20))
def test_tau_counts_the_pairs_whose_order_is_known(answers: list[tuple[int, int, bool]]) -> None:
    """Pair by pair: an answer is longer than one that ended before it, or where it was itself cut."""
    concordant = known = ordered = 0
    for predicted, reached, cut in answers:
        for other_predicted, other_reached, other_cut in answers:
            longer = not other_cut and (reached > other_reached or (cut and reached == other_reached))
            known += 2 * longer
            concordant += 2 * longer * int(np.sign(predicted - other_predicted))
            ordered += predicted != other_predicted
    expected = concordant / np.sqrt(known * ordered) if known * ordered else 0.0
    assert kendall_tau(*zip(*answers, strict=True)) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 100), st.booleans())
def test_mean_pinball_is_the_mean_of_the_pinball_losses(tokens: int, censored: bool) -> None:
    """Worked out together they are the same."""
    observation = Observation(tokens, censored)
    losses = []
    for probability in PINBALL_PROBABILITIES:
        error = tokens - UNIFORM.quantile(probability)
        over = 0.0 if censored else (probability - 1.0) * error
        losses.append(probability * error if error >= 0 else over)
    assert mean_pinball_tokens(UNIFORM, observation) == pytest.approx(float(np.mean(losses)))


def _fill(book: CalibrationBook, answers: int, *, cluster: int | None = 1, model: str = "m") -> list[Observation]:
    generator = np.random.default_rng(0)
    seen = []
    for _ in range(answers):
        seen.append(Observation(int(generator.choice(LENGTHS)), censored=bool(generator.random() < 0.2)))
        book.record(model, cluster, judge(UNIFORM, UNIFORM, seen[-1], trusted=True, uniform=float(generator.random())))
    return seen


def _measured(book: CalibrationBook, now_s: float = 0.0) -> dict[Scope, Measurement]:
    found: dict[Scope, Measurement] = {}
    while measurements := book.due(now_s):
        found |= {measurement.scope: measurement for measurement in measurements}
    return found


def test_a_measurement_is_the_mean_over_the_window() -> None:
    """The figures of the last answers and no others, cut ones included, for the model and the cluster alike."""
    book = CalibrationBook(CalibrationSettings(model_window=80, cluster_window=50))
    seen = _fill(book, 200)
    measured = _measured(book)
    assert set(measured) == {Scope("m"), Scope("m", "cluster", 1)}
    for scope, answers in ((Scope("m"), 80), (Scope("m", "cluster", 1), 50)):
        measurement = measured[scope]
        window = seen[-answers:]
        assert measurement.answers == answers
        assert measurement.censored == sum(each.censored for each in window)
        assert measurement.crps_tokens == pytest.approx(np.mean([crps_tokens(UNIFORM, each) for each in window]))
        assert measurement.log_score == measurement.prior_log_score
        assert sum(measurement.pit_histogram) == pytest.approx(1.0)
        assert measurement.kendall_tau == 0.0
        assert measurement.trusted


def test_coverage_is_that_of_the_scores() -> None:
    """As `summarise` has it for the same judgements."""
    book = CalibrationBook()
    generator = np.random.default_rng(1)
    made = [
        judge(
            UNIFORM,
            UNIFORM,
            Observation(int(generator.choice(LENGTHS)), censored=False),
            trusted=True,
            uniform=generator.random(),
        )
        for _ in range(300)
    ]
    for judgement in made:
        book.record("m", None, judgement)
    expected = summarise(judgement.score for judgement in made)
    measurement = _measured(book)[Scope("m")]
    assert expected is not None
    assert (measurement.coverage_50, measurement.coverage_90) == (expected.coverage_50, expected.coverage_90)
    assert measurement.pit_histogram == expected.pit_histogram


def test_windows_are_measured_when_there_is_news() -> None:
    """At the first answer, then after a number of answers, or after a time when there was one; never without news."""
    book = CalibrationBook(CalibrationSettings(every_answers=10, every_s=60.0))
    _fill(book, 1)
    assert set(_measured(book, 0.0)) == {Scope("m"), Scope("m", "cluster", 1)}
    assert _measured(book, 1_000.0) == {}
    _fill(book, 9)
    assert _measured(book, 1.0) == {}
    _fill(book, 1)
    assert len(_measured(book, 1.0)) == 2
    _fill(book, 1)
    assert _measured(book, 30.0) == {}
    assert len(_measured(book, 61.0)) == 2


def test_models_and_clusters_are_bounded() -> None:
    """Clusters beyond the bound share the rest's window, until one has been idle for long; models go oldest first."""
    book = CalibrationBook(CalibrationSettings(max_models=2, max_clusters=3, idle_answers=50))
    for cluster in range(3):
        _fill(book, 5, cluster=cluster)
    _fill(book, 5, cluster=7)
    scopes = set(_measured(book))
    assert Scope("m", "cluster", 7) not in scopes
    assert Scope("m", "rest") in scopes
    _fill(book, 60, cluster=None)
    _fill(book, 1, cluster=8)
    assert Scope("m", "cluster", 8) in _measured(book, 1e9)
    for model in ("n", "o"):
        _fill(book, 1, model=model)
    assert {scope.model for scope in _measured(book, 2e9)} <= {"n", "o"}
    assert {measurement.scope.model for measurement in book.latest()} == {"n", "o"}
