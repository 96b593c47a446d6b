import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.clustering.split_tests import (
    Members,
    SplitSettings,
    life_table,
    log_evidence,
    nats_for_two,
    two_halves,
)
from online_learning.distribution import log_grid
from online_learning.length_learner import Observation
from online_learning.survival.hazard import survival_from_hazard, vague_hazard
from online_learning.survival.length_sketch import LengthSketch, SketchSettings
from online_learning.survival.model_prior import Prior

GRID = log_grid()
PRIOR = Prior.of(vague_hazard(GRID))
LIMITS = SplitSettings(fewest=8, nats=4.0, share=0.82)
SMALL = Prior.of(np.array([0.2, 0.3, 0.5, 0.9]))

answers = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30)


def _table(answers: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    bins = np.array([position for position, _ in answers], dtype=np.int64)
    return life_table(bins, np.array([censored for _, censored in answers], dtype=bool), 4)


@settings(max_examples=100, deadline=None)
@given(answers=answers)
def test_the_evidence_is_the_product_of_one_step_forecasts(answers: list[tuple[int, bool]]) -> None:
    """Predicting each answer from those before it, by the same prior, and multiplying the chances gives the same."""
    weight = 10.0 * SMALL.survival
    ended, outlived = weight * SMALL.hazard, weight * (1.0 - SMALL.hazard)
    total = 0.0
    for position, censored in answers:
        hazard = ended / (ended + outlived)
        total += float(np.log1p(-hazard[:position]).sum()) + (0.0 if censored else float(np.log(hazard[position])))
        outlived[:position] += 1.0
        ended[position] += not censored
    assert log_evidence(*_table(answers), SMALL) == pytest.approx(total, abs=1e-6)


def test_the_life_table_counts_as_a_sketch_does() -> None:
    """Events and exposure of finished answers are those of a sketch that forgets nothing."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 5_000, 200)
    sketch = LengthSketch(GRID, SketchSettings(memory_answers=1e15, drift_confidence=1e-12))
    for length in tokens:
        sketch.learn_one(Observation(int(length), censored=False))
    events, exposure = life_table(np.searchsorted(GRID, tokens), np.zeros(200, dtype=bool), GRID.size)
    np.testing.assert_allclose(events, sketch.events)
    np.testing.assert_allclose(exposure, sketch.exposure)
    np.testing.assert_allclose(
        survival_from_hazard(np.divide(events, exposure, where=exposure > 0, out=events * 0))[0], 1
    )


def test_alike_answers_speak_for_one_and_different_ones_for_two() -> None:
    """Two samples of one distribution have a negative log likelihood ratio, of 50 and 500 tokens a large one."""
    generator = np.random.default_rng(1)

    def sample(median: float) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.maximum(1, (median * np.exp(0.5 * generator.normal(size=80))).astype(int))
        return life_table(np.searchsorted(GRID, tokens), np.zeros(80, dtype=bool), GRID.size)

    assert nats_for_two(sample(100.0), sample(100.0), PRIOR) < -3.0
    assert nats_for_two(sample(50.0), sample(500.0), PRIOR) > 20.0


def _members(generator: np.random.Generator, *, gap: float, factor: float, models: int = 1) -> Members:
    """Prompts in 20 dimensions; of half of them the first is moved, and their answers are ``factor`` times as long."""
    second = generator.random(96) < 0.5
    points = generator.normal(size=(96, 20)).astype(np.float32)
    points[:, 0] += gap * second
    tokens = np.maximum(1, (80.0 * np.where(second, factor, 1.0) * np.exp(0.4 * generator.normal(size=96))).astype(int))
    return Members(
        points=points,
        bins=np.searchsorted(GRID, tokens),
        censored=np.zeros(96, dtype=bool),
        models=tuple(f"m{number % models}" for number in range(96)),
    )


def _halved(members: Members) -> bool:
    return two_halves(members, dict.fromkeys(set(members.models), PRIOR), LIMITS) is not None


@pytest.mark.parametrize("models", [1, 3])
def test_a_cluster_whose_answers_are_two_is_halved(models: int) -> None:
    """Where a little step in features goes with lengths that are eight times as long, mostly."""
    halved = [_halved(_members(np.random.default_rng(seed), gap=3.0, factor=8.0, models=models)) for seed in range(20)]
    assert sum(halved) >= 12


def test_a_cluster_whose_prompts_are_two_is_halved_in_the_right_place() -> None:
    """Two heaps with the same answers: the heaps are found."""
    generator = np.random.default_rng(4)
    members = _members(generator, gap=12.0, factor=1.0)
    leaving = two_halves(members, {"m0": PRIOR}, LIMITS)
    assert leaving is not None
    beyond = members.points[:, 0] > 6.0
    assert (leaving == beyond).all() or (leaving == ~beyond).all()
    assert leaving.sum() <= 48


def test_a_cluster_that_is_one_is_left_whole() -> None:
    """One heap whose features say nothing of length: two of a hundred are halved at most."""
    halved = [_halved(_members(np.random.default_rng(seed), gap=0.0, factor=1.0)) for seed in range(100)]
    assert sum(halved) <= 2


def test_that_models_differ_makes_no_two_of_a_cluster() -> None:
    """Two models that answer the same prompts ten times as long as each other: one cluster."""
    generator = np.random.default_rng(6)
    members = _members(generator, gap=0.0, factor=1.0, models=2)
    longer = np.array(members.models) == "m1"
    moved = Members(
        points=members.points, bins=members.bins + 20 * longer, censored=members.censored, models=members.models
    )
    assert not _halved(moved)
