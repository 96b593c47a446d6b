"""Evidence of answers while they run: mean zero in any order for right predictions, and not for wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.calibration.calibration import CalibrationBook, Measurement, judge
from online_learning.calibration.evidence import (
    ADVANTAGE,
    LOG_TOKENS,
    VARIANCE_50,
    WITHIN_50,
    Course,
    Watch,
    bins_outlived,
    nothing,
)
from online_learning.calibration.scoring import log_score, pit, within
from online_learning.distribution import LengthDistribution, log_grid
from online_learning.length_learner import Observation

GRID = log_grid()
FAMILIES = 4


def family(centre_tokens: float, width: float = 0.7) -> LengthDistribution:
    """Log-normal lengths around a centre."""
    mass = np.exp(-0.5 * ((np.log(GRID) - np.log(centre_tokens)) / width) ** 2)
    return LengthDistribution(GRID, mass / mass.sum())


TRUTH = [family(30.0 * 3.0**number) for number in range(FAMILIES)]
PRIOR = LengthDistribution(GRID, np.mean([each.mass for each in TRUTH], axis=0))

masses = st.lists(st.floats(0.001, 1.0), min_size=GRID.size, max_size=GRID.size).map(
    lambda values: LengthDistribution(GRID, np.array(values) / sum(values))
)


@settings(max_examples=30, deadline=None)
@given(masses)
def test_what_is_expected_of_an_answer_is_the_mean_of_what_can_become_of_it(predicted: LengthDistribution) -> None:
    """At every age and for each score: by brute force over the bins in which it may end."""
    course = Course(predicted, PRIOR, worst_nats=5.0)
    for bins in (0, 1, 20, 60, GRID.size - 1):
        rest = predicted.mass[bins:] / predicted.mass[bins:].sum()
        ends = np.array([course.ended(position) for position in range(bins, GRID.size)])
        expected = rest @ ends
        for column in (WITHIN_50, WITHIN_50 + 1, LOG_TOKENS):
            assert course.outlived(bins)[column] == pytest.approx(expected[column], abs=1e-6)
    variance = predicted.mass @ (
        (np.array([course.ended(b)[WITHIN_50] for b in range(GRID.size)]) - course.outlived(0)[WITHIN_50]) ** 2
    )
    gathered = predicted.mass @ np.array([course.ended(b)[VARIANCE_50] for b in range(GRID.size)])
    assert gathered == pytest.approx(variance, abs=1e-6)


@given(masses, st.integers(1, 20_000))
def test_an_answer_that_has_ended_has_the_scores_of_its_whole_length(
    predicted: LengthDistribution, tokens: int
) -> None:
    """Inside the interval as often as its randomised PIT is, and with the difference of the two log scores."""
    observation = Observation(tokens, censored=False)
    row = Course(predicted, PRIOR, worst_nats=50.0).ended(bins_outlived(tokens))
    draws = (np.arange(2_000) + 0.5) / 2_000
    inside = np.mean([within(pit(predicted, observation, draw), 0.5) for draw in draws])
    assert row[WITHIN_50] == pytest.approx(inside, abs=2e-3)
    assert row[ADVANTAGE] == pytest.approx(log_score(predicted, observation) - log_score(PRIOR, observation), abs=1e-6)


def test_distributions_on_other_lengths_count_on_the_common_grid() -> None:
    """As those of the published predictor, which knows only lengths that it has seen."""
    course = Course(LengthDistribution(np.array([100, 900]), np.array([0.5, 0.5])), PRIOR, worst_nats=5.0)
    assert course.outlived(bins_outlived(500))[LOG_TOKENS] == pytest.approx(np.log(900), abs=0.06)
    assert course.outlived(0)[LOG_TOKENS] == pytest.approx((np.log(100) + np.log(900)) / 2, abs=0.12)


def test_what_came_before_the_prediction_says_nothing_of_it() -> None:
    """One that is predicted in the middle of its answer is held to the rest."""
    course = Course(TRUTH[0], PRIOR, worst_nats=5.0)
    watch = Watch(course, course, bins_outlived(400))
    assert watch.reach(400) is None
    served, _ = watch.end(400)
    assert abs(served[LOG_TOKENS]) < 0.5


class Queue:
    """Requests that come at once; ``order`` decides who runs, a few at a time, a token each in a moment.

    What ended and what runs is counted every ten moments, as an engine reports it.
    """

    def __init__(self, seed: int, requests: int, *, wrong: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.book = CalibrationBook()
        self.changes: list[tuple[int, str, str]] = []
        self.surprises: list[float] = []
        self.as_a_whole = CalibrationBook()
        self.as_a_whole_changes: list[Measurement] = []
        self.ended = 0
        self.families = self.generator.integers(0, FAMILIES, requests)
        self.lengths = [int(self.generator.choice(GRID, p=TRUTH[number].mass)) for number in self.families]
        predicted = [TRUTH[(number + wrong) % FAMILIES] for number in self.families]
        courses = {id(each): Course(each, PRIOR, worst_nats=5.0) for each in TRUTH}
        self.watches = [Watch(courses[id(each)], courses[id(each)], 0) for each in predicted]
        self.predicted = predicted
        self.means = [each.mean_tokens for each in predicted]

    def serve(self, order: list[int], *, places: int = 64, step: int = 10) -> None:
        """Serve all in this order."""
        waiting, age = list(reversed(order)), {}
        while waiting or age:
            while waiting and len(age) < places:
                age[waiting.pop()] = 0
            for number in list(age):
                age[number] += step
                if age[number] >= self.lengths[number]:
                    del age[number]
                    self._end(number)
            for number, tokens in age.items():
                reached = self.watches[number].reach(tokens)
                if reached:
                    self.book.progress("m", int(self.families[number]), *reached)
            for change in self.book.review("m"):
                self.changes.append((self.ended, change.scope.kind, change.reason))

    def _end(self, number: int) -> None:
        cluster, tokens = int(self.families[number]), self.lengths[number]
        reached = self.watches[number].reach(tokens)
        if reached:
            self.book.progress("m", cluster, *reached)
        served, own = self.watches[number].end(tokens)
        self.surprises.append(self.book.surprises("m", cluster, own)[0])
        observation, uniform = Observation(tokens, censored=False), self.generator.random()
        judgement = judge(self.predicted[number], PRIOR, observation, trusted=True, uniform=uniform)
        self.as_a_whole_changes += self.as_a_whole.record("m", cluster, judgement)
        self.book.add("m", cluster, judgement)
        self.book.ended("m", cluster, served, own)
        self.ended += 1


def _shortest_first(queue: Queue) -> list[int]:
    return sorted(range(len(queue.lengths)), key=lambda number: queue.means[number])


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_served_shortest_first_is_no_fault(seed: int) -> None:
    """Long answers alone end at last; judged as a whole in the order of their ends, right predictions would be doubted."""
    queue = Queue(seed, 1_200)
    queue.serve(_shortest_first(queue), places=400)
    assert queue.changes == []
    assert queue.as_a_whole_changes, "the case is one that needs the evidence of what runs"


@pytest.mark.parametrize("seed", range(3))
def test_surprises_have_mean_zero_all_along_a_batch(seed: int) -> None:
    """However lengths rise in the order of ends."""
    queue = Queue(seed, 1_200)
    queue.serve(_shortest_first(queue), places=400)
    for part in np.array_split(np.array(queue.surprises), 6):
        assert abs(part.mean()) < 4.5 * part.std() / np.sqrt(part.size)


@pytest.mark.parametrize("seed", range(3))
def test_wrong_predictions_are_doubted_in_a_batch_too(seed: int) -> None:
    """Those of other prompts, within a hundred answers."""
    queue = Queue(seed, 600, wrong=2)
    queue.serve(_shortest_first(queue))
    ended, kind, _ = queue.changes[0]
    assert kind == "model"
    assert ended <= 100


def test_answers_that_are_all_cut_say_nothing_against_right_predictions() -> None:
    """Aborted at any age, so that none ever ends by itself."""
    book, generator = CalibrationBook(), np.random.default_rng(0)
    course = Course(TRUTH[2], PRIOR, worst_nats=5.0)
    for _ in range(2_000):
        tokens = int(generator.choice(GRID, p=TRUTH[2].mass))
        watch, cut = Watch(course, course, 0), int(generator.integers(1, 400))
        reached = watch.reach(min(tokens, cut))
        if reached:
            book.progress("m", 2, *reached)
        served, own = watch.end(tokens) if tokens <= cut else (nothing(), nothing())
        observation = Observation(min(tokens, cut), censored=tokens > cut)
        book.add("m", 2, judge(TRUTH[2], PRIOR, observation, trusted=True, uniform=generator.random()))
        book.ended("m", 2, served, own)
        assert book.review("m") == []
