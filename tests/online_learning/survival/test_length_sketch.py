import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.distribution import log_grid
from online_learning.length_learner import Observation
from online_learning.survival.hazard import mass_from_hazard, posterior_hazard, survival_from_hazard
from online_learning.survival.length_sketch import LengthSketch, SketchSettings

FOREVER = SketchSettings(memory_answers=1e15, drift_confidence=1e-12)

observations = st.lists(
    st.builds(Observation, output_tokens=st.integers(1, 40), censored=st.booleans()), min_size=1, max_size=120
)


def kaplan_meier(answers: list[Observation], tokens: int) -> float:
    """P(L > tokens) by the textbook's product over every single length; unfinished ones are at risk before their cut."""
    survival = 1.0
    for length in range(1, tokens + 1):
        ended = sum(1 for a in answers if not a.censored and a.output_tokens == length)
        at_risk = sum(1 for a in answers if a.output_tokens > length or (a.output_tokens == length and not a.censored))
        if at_risk:
            survival *= 1.0 - ended / at_risk
    return survival


@settings(max_examples=60, deadline=None)
@given(answers=observations)
def test_counts_give_the_kaplan_meier_estimate(answers: list[Observation]) -> None:
    """On a grid that separates all lengths the hazards multiply to the product-limit estimator."""
    sketch = LengthSketch(np.arange(1, 42), FOREVER)
    for answer in answers:
        sketch.learn_one(answer)
    hazard = np.divide(sketch.events, sketch.exposure, out=np.zeros(41), where=sketch.exposure > 1e-9)
    survival = np.append(survival_from_hazard(hazard)[1:], 0.0)
    for tokens in range(1, 40):
        assert abs(survival[tokens - 1] - kaplan_meier(answers, tokens)) < 1e-9


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=100), strength=st.floats(0.1, 50.0))
def test_without_censoring_shrinkage_is_the_dirichlet_posterior(lengths: list[int], strength: float) -> None:
    """With the prior's weight falling like its survival, the mass is the count-weighted mean of data and prior."""
    grid = np.arange(1, 42)
    sketch = LengthSketch(grid, FOREVER)
    for tokens in lengths:
        sketch.learn_one(Observation(tokens, censored=False))
    prior = np.full(41, 0.07)
    weight = strength * survival_from_hazard(prior)
    mass = mass_from_hazard(posterior_hazard(sketch.events, sketch.exposure, prior, weight))
    counted = np.bincount(lengths, minlength=42)[1:]
    expected = (counted + strength * mass_from_hazard(prior)) / (len(lengths) + strength)
    np.testing.assert_allclose(mass, expected, atol=1e-9)


def test_an_answer_cut_inside_a_bin_is_at_risk_for_the_part_it_outlived() -> None:
    """Cut at 150 of the bin from 100 to 200: 49 of 100 tokens were outlived for certain."""
    sketch = LengthSketch(np.array([100, 200, 400]), SketchSettings())
    sketch.learn_one(Observation(150, censored=True))
    np.testing.assert_allclose(sketch.exposure, [1.0, 0.49, 0.0])
    assert sketch.events.sum() == 0.0


def test_old_answers_fade() -> None:
    """After memory_answers further answers an old one has a weight of 1/e, and the evidence has its bound."""
    sketch = LengthSketch(log_grid(), SketchSettings(memory_answers=100.0, drift_confidence=1e-9))
    sketch.learn_one(Observation(5, censored=False))
    for number in range(100):
        sketch.learn_one(Observation(6 + number % 2, censored=False))
    assert abs(sketch.events[4] - np.exp(-1.0)) < 0.01
    for _ in range(1_000):
        sketch.learn_one(Observation(6, censored=False))
    assert 99.0 < sketch.evidence <= 100.0


def test_a_stationary_stream_is_seldom_taken_for_a_drift() -> None:
    """Twenty streams of 2,000 heavy-tailed answers: two false alarms at most."""
    alarms = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        sketch = LengthSketch(log_grid(), SketchSettings())
        for tokens in np.exp(5.0 + generator.normal(size=2_000)).astype(int) + 1:
            alarms += sketch.learn_one(Observation(int(tokens), censored=False)) is not None
    assert alarms <= 2


def test_more_censoring_alone_is_no_drift() -> None:
    """When answers begin to be cut at 200 tokens but are what they were, nothing is forgotten."""
    generator = np.random.default_rng(4)
    sketch = LengthSketch(log_grid(), SketchSettings())
    for number in range(3_000):
        tokens = int(np.exp(5.0 + 0.7 * generator.normal())) + 1
        cut = number >= 1_500 and tokens > 200
        assert sketch.learn_one(Observation(200 if cut else tokens, censored=cut)) is None
    assert sketch.evidence > 2_000


def test_a_drift_leaves_what_came_after_it() -> None:
    """Lengths of 50 become 500: the sketch keeps recent answers only, and says what it gave up."""
    generator = np.random.default_rng(9)
    sketch = LengthSketch(log_grid(), SketchSettings())
    forgotten = []
    for number in range(700):
        tokens = int((50 if number < 600 else 500) * np.exp(0.3 * generator.normal())) + 1
        found = sketch.learn_one(Observation(tokens, censored=False))
        forgotten += [found] if found else []
    assert forgotten
    assert 40 < forgotten[0].before_mean_tokens < 60
    assert forgotten[-1].after_mean_tokens > 200
    assert sketch.evidence < 150
