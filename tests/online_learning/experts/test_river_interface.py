"""The cluster expert as a River model: River's own checks, and the same numbers by names as by vectors."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from river import checks, compose, evaluate, metrics, preprocessing, stats

from online_learning.clustering.clusters import ClusterSettings
from online_learning.distribution import log_grid
from online_learning.experts.cluster import ClusterLengthRegressor
from online_learning.experts.expert import Query
from online_learning.length_learner import Observation
from online_learning.mixture.mixture import MixtureLearner
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings

Sample = tuple[dict[str, float], int]

SMALL = ClusterSettings(
    clusters=6, dimensions=8, text_dimensions=0, early_seed_prompts=(30,), seed_prompts=60, check_prompts=24
)


def _every_check() -> Iterator[Any]:
    for number, params in enumerate(ClusterLengthRegressor._unit_test_params()):
        model = ClusterLengthRegressor(**params)
        for place, check in enumerate(checks.yield_checks(model)):
            yield pytest.param(model, check, id=f"{number}-{check.__name__}-{place}")


def make_stream(count: int, seed: int = 0) -> Iterator[Sample]:
    """Two kinds of prompts with medians of 40 and 800 tokens, on scales that differ."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        code = int(generator.integers(2))
        x = {"code": 10.0 * code + generator.normal(), "characters": 2_000.0 + 100.0 * generator.normal()}
        yield x, 1 + int((40, 800)[code] * np.exp(0.3 * generator.normal()))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "check"), list(_every_check()))
def test_river_checks_pass(model: ClusterLengthRegressor, check: Callable[[ClusterLengthRegressor], None]) -> None:
    """Every check that River has for a regressor holds, with default parameters and where clusters come and go."""
    assert model._unit_test_skips() == set()
    check(model.clone())


def test_a_pipeline_predicts_better_than_the_running_median() -> None:
    """Behind a scaler, under River's own evaluation, it errs by less than half of what the median so far does."""
    model = preprocessing.StandardScaler() | ClusterLengthRegressor(SMALL)
    assert isinstance(model, compose.Pipeline)
    ours = evaluate.progressive_val_score(make_stream(600), model, metrics.MAE()).get()
    median, baseline = stats.Quantile(0.5), metrics.MAE()
    for _, y in make_stream(600):
        baseline.update(y, median.get() or 0.0)
        median.update(y)
    assert ours < 0.5 * baseline.get()


def test_the_median_is_that_of_the_predicted_distribution() -> None:
    """Both answers to a prompt agree, and the distribution tells its kind's lengths from the other kind's."""
    model = ClusterLengthRegressor(SMALL)
    for x, y in make_stream(400):
        model.learn_one(x, y)
    for code, (low, high) in ((0, (30, 55)), (1, (600, 1_100))):
        x = {"code": 10.0 * code, "characters": 2_000.0}
        predicted = model.predict_distribution_one(x)
        assert model.predict_one(x) == predicted.quantile(0.5)
        assert low <= predicted.quantile(0.5) <= high
        assert predicted.survival(131_072) == 0.0


def test_an_answer_known_in_part_counts_as_at_least_as_long() -> None:
    """Answers that are all cut at 128 tokens are predicted to be longer than that."""
    model = ClusterLengthRegressor(SMALL)
    for x, _ in make_stream(300):
        model.learn_one(x, 128, censored=True)
    assert model.predict_distribution_one({"code": 0.0, "characters": 2_000.0}).survival(121) > 0.9


def test_names_and_vectors_are_one_model() -> None:
    """Taught by names or by vectors in the slots' order, the predicted distributions are equal to the last bit."""
    by_name, by_vector = ClusterLengthRegressor(SMALL), ClusterLengthRegressor(SMALL)
    prior = ModelPrior(ModelPriorSettings(max_models=1))

    def query(x: dict[str, float]) -> Query:
        vector = np.zeros(SMALL.dimensions, dtype=np.float32)
        vector[:2] = x["characters"], x["code"]
        return Query(vector, "m", prior.prior("m"))

    for x, y in make_stream(500):
        np.testing.assert_array_equal(by_name.predict_distribution_one(x).mass, by_vector.predict([query(x)]).masses[0])
        by_name.learn_one(x, y)
        observation = Observation(y, censored=False)
        by_vector.learn(query(x), observation, judged=True)
        prior.learn("m", observation)


def test_the_mixture_holds_this_class() -> None:
    """What the controller predicts with is the River model itself."""
    assert any(isinstance(expert, ClusterLengthRegressor) for expert in MixtureLearner()._experts)


def test_a_pickled_model_goes_on_as_the_original_does() -> None:
    """After a round trip through pickle both learn and predict the same, and neither touches the other."""
    model = ClusterLengthRegressor(SMALL)
    samples = list(make_stream(500))
    for x, y in samples[:250]:
        model.learn_one(x, y)
    copy = pickle.loads(pickle.dumps(model))
    for one in (model, copy):
        for x, y in samples[250:]:
            one.learn_one(x, y)
    for x, _ in samples[:50]:
        np.testing.assert_array_equal(model.predict_distribution_one(x).mass, copy.predict_distribution_one(x).mass)


def test_features_without_a_number_are_refused_or_ignored() -> None:
    """A word is no number; one that is missing, or not finite, counts as its mean so far."""
    model = ClusterLengthRegressor(SMALL)
    for x, y in make_stream(300):
        model.learn_one(x, y)
    with pytest.raises(TypeError):
        model.learn_one({"code": "python"}, 10)
    with pytest.raises(ValueError, match="NaN"):
        model.learn_one({"code": 1.0}, float("nan"))
    assert model.predict_one({"code": 0.0, "characters": float("nan")}) == model.predict_one({"code": 0.0})
    assert model.predict_one({"new": 1.0}) == model.predict_one({})


def test_the_grid_ends_at_the_longest_length() -> None:
    """`longest_tokens` bounds predictions."""
    model = ClusterLengthRegressor(SMALL, longest_tokens=1_000)
    for x, _ in make_stream(50):
        model.learn_one(x, 5_000)
    assert model.predict_one({"code": 0.0}) == 1_000.0
    assert model.predict_distribution_one({}).lengths.size == log_grid(1_000).size
