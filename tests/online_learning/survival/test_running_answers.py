"""Answers that still run, beside what was learnt: against brute force, and against what dropping them does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.distribution import LengthDistribution, log_grid
from online_learning.length_learner import AtRisk
from online_learning.survival.hazard import mass_from_hazard
from online_learning.survival.running_answers import RunningAnswers, RunningAnswersSettings, Standing

GRID = np.arange(1, 33)
FOREVER = RunningAnswersSettings(model_memory_answers=1e12, cluster_memory_answers=1e12)

lives = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=60
)  # start, length, cluster


class Stream:
    """Answers of one model that grow by a token a moment; the life table of those that have ended is what was learnt."""

    def __init__(self, lives: list[tuple[int, int, int]], settings: RunningAnswersSettings, keep: float = 1.0) -> None:
        self.lives = lives
        self.unfinished = RunningAnswers(GRID, settings)
        self.standing: dict[int, Standing | None] = {}
        self.keep = keep
        self.events, self.exposure = np.zeros(GRID.size), np.zeros(GRID.size)
        self.as_it_came = np.zeros(GRID.size)
        self.told: dict[int, int] = {}

    def run(self, until: int) -> None:
        for moment in range(1, until + 1):
            for number, (start, length, cluster) in enumerate(self.lives):
                attained = moment - start
                if 0 < attained < length:
                    self._grow(number, cluster, attained)
                elif attained == length:
                    self._end(number, length, cluster)

    def _grow(self, number: int, cluster: int, attained: int) -> None:
        self.standing[number] = self.unfinished.advance(self.standing.get(number), "m", cluster, attained)
        bins = attained - 1
        self.as_it_came[self.told.get(number, 0) : bins] += 1.0
        self.told[number] = bins

    def _end(self, number: int, length: int, cluster: int) -> None:
        self.unfinished.record_answer("m", cluster)
        self.unfinished.withdraw(self.standing.pop(number, None))
        self.events, self.exposure, self.as_it_came = (
            counts * self.keep for counts in (self.events, self.exposure, self.as_it_came)
        )
        self.exposure[:length] += 1.0
        self.as_it_came[self.told.pop(number, 0) : length] += 1.0
        self.events[length - 1] += 1.0

    def corrected(self, prior_answers: float = 1e-9) -> np.ndarray:
        hazard = self.events / (self.exposure + prior_answers)
        predicted = LengthDistribution(GRID, mass_from_hazard(np.minimum(hazard, 1.0)))
        at_risk = AtRisk(learnt=self.exposure[0], model=self.exposure + prior_answers)
        return np.asarray(self.unfinished.correct(predicted, "m", None, at_risk).mass)


def _kaplan_meier(lives: list[tuple[int, int, int]], until: int) -> np.ndarray:
    """Mass by the textbook's product over every length, with those that still run cut where they are."""
    hazard = np.zeros(GRID.size)
    for position, tokens in enumerate(GRID):
        ended = sum(1 for start, length, _ in lives if length == tokens and start + length <= until)
        outlived = sum(1 for start, length, _ in lives if min(length, until - start) > tokens and start < until)
        if ended + outlived:
            hazard[position] = ended / (ended + outlived)
    return np.asarray(mass_from_hazard(hazard))


@settings(max_examples=60, deadline=None)
@given(lives=lives, until=st.integers(1, 95))
def test_what_ended_and_what_runs_together_are_the_kaplan_meier_estimate(
    lives: list[tuple[int, int, int]], until: int
) -> None:
    """In a system that began empty: the product-limit estimator over all answers so far, up to the last that ended."""
    stream = Stream(lives, FOREVER)
    stream.run(until)
    scope = stream.unfinished._scopes.get("all/m")
    running = np.zeros(GRID.size) if scope is None else scope.now
    told_apart = np.flatnonzero((stream.exposure > 0.5) & (stream.exposure > 0.02 * (stream.exposure + running)))
    if told_apart.size:
        last = int(told_apart[-1])
        np.testing.assert_allclose(stream.corrected()[:last], _kaplan_meier(lives, until)[:last], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(lives=lives, until=st.integers(1, 95), memory=st.floats(2.0, 100.0))
def test_forgetting_is_that_of_a_learner_that_was_told_of_every_token(
    lives: list[tuple[int, int, int]], until: int, memory: float
) -> None:
    """X + O - Ō is what answers at risk would be, had each bin counted when it was outlived, and faded since."""
    stream = Stream(lives, RunningAnswersSettings(model_memory_answers=memory), keep=1.0 - 1.0 / memory)
    stream.run(until)
    scope = stream.unfinished._scopes.get("all/m")
    missing = np.zeros(GRID.size) if scope is None else scope.missing
    np.testing.assert_allclose(stream.exposure + missing, stream.as_it_came, atol=1e-6)


def test_nothing_counts_twice() -> None:
    """Once every answer has ended nothing is left of what ran, in any scope, and predictions are as they were learnt."""
    generator = np.random.default_rng(0)
    lives = [
        (int(generator.integers(50)), int(generator.integers(1, 30)), int(generator.integers(3))) for _ in range(80)
    ]
    stream = Stream(lives, FOREVER)
    stream.run(100)
    for scope in stream.unfinished._scopes.states():
        np.testing.assert_array_equal(scope.now, 0.0)
    learnt = stream.events / np.maximum(stream.exposure, 1e-9)
    np.testing.assert_allclose(stream.corrected(), mass_from_hazard(learnt), atol=1e-6)


@pytest.mark.slow
def test_in_balance_running_answers_change_nothing() -> None:
    """Where as many answers run as always did, those that end are a fair sample; counting the others would be a bias."""
    generator = np.random.default_rng(1)
    lives = [(start, int(generator.choice([2, 28])), 0) for start in range(3_000)]
    stream = Stream(lives, RunningAnswersSettings(model_memory_answers=300.0), keep=1.0 - 1.0 / 300.0)
    stream.run(2_900)
    assert len(stream.standing) >= 10
    short = float(stream.corrected()[:5].sum())
    assert short == pytest.approx(0.5, abs=0.06)


def test_a_cluster_whose_answers_all_run_is_predicted_longer_than_another() -> None:
    """Of two clusters with the same distribution, the one with 20 answers beyond 500 tokens gains, the other hardly does."""
    grid = log_grid()
    unfinished = RunningAnswers(grid)
    standings = [unfinished.advance(None, "m", 1, 500) for _ in range(20)]
    mass = np.exp(-0.5 * ((np.log(grid) - np.log(100.0)) / 1.0) ** 2)
    predicted = LengthDistribution(grid, mass / mass.sum())
    survival = np.cumsum(predicted.mass[::-1])[::-1]
    at_risk = AtRisk(learnt=400.0, model=400.0 * survival + 10.0, cluster=10.0 * survival, drawn=10.0 * survival)
    means = {cluster: unfinished.correct(predicted, "m", cluster, at_risk).mean_tokens for cluster in (1, 2)}
    assert means[1] > 3.0 * predicted.mean_tokens
    assert predicted.mean_tokens < means[2] < 0.5 * means[1]
    for standing in standings:
        unfinished.withdraw(standing)
    after = unfinished.correct(predicted, "m", 1, at_risk)
    np.testing.assert_allclose(after.mass, predicted.mass, atol=1e-9)


def test_what_is_resumed_counts_as_far_as_the_learner_is_young() -> None:
    """After a restart of a young learner what runs counts in full, of an old one hardly, of one without any not at all."""
    grid = log_grid()
    predicted = LengthDistribution(grid, np.full(grid.size, 1.0 / grid.size))
    gains = {}
    for learnt in (0.0, 50.0, 5_000.0):
        unfinished = RunningAnswers(grid)
        at_risk = AtRisk(learnt=learnt, model=np.full(grid.size, 50.0))
        for _ in range(30):
            standing = unfinished.advance(None, "m", None, 300)
            assert standing is not None
            unfinished.resume(standing, at_risk)
        gains[learnt] = unfinished.correct(predicted, "m", None, at_risk).survival(300) - predicted.survival(300)
    assert gains[50.0] > 0.1
    assert abs(gains[5_000.0]) < 0.01
    assert abs(gains[0.0]) < 1e-9
