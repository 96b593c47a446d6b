import numpy as np

from online_learning.evaluation.paper_predictor import SimilarityLearner, SimilaritySettings
from online_learning.features.prompt_features import DIMENSIONS, TEXT_DIMENSIONS
from online_learning.length_learner import Features, Observation


def _at_cosine(cosine: float) -> Features:
    """A prompt whose text part has this cosine with the first axis."""
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    vector[0], vector[1] = cosine, np.sqrt(1.0 - cosine**2)
    return vector


def _learn(learner: SimilarityLearner, cosine: float, tokens: int, *, censored: bool = False) -> None:
    assert learner.learn_one(_at_cosine(cosine), "m", Observation(tokens, censored)) == []


def test_the_lengths_of_similar_prompts_are_the_prediction() -> None:
    """Those with a cosine of 0.8 and more, each with the same weight, and no others."""
    learner = SimilarityLearner()
    for cosine, tokens in ((0.99, 50), (0.81, 70), (0.9, 50), (0.79, 500)):
        _learn(learner, cosine, tokens)
    forecast = learner.predict_one(_at_cosine(1.0), "m")
    assert forecast.distribution.lengths.tolist() == [50, 70]
    np.testing.assert_allclose(forecast.distribution.mass, [2 / 3, 1 / 3])
    assert (forecast.evidence, forecast.experts) == (3.0, {"similarity": 1.0})


def test_without_similar_prompts_the_global_distribution_serves() -> None:
    """So it does for a model that was never seen."""
    learner = SimilarityLearner()
    _learn(learner, -0.5, 500)
    for model in ("m", "never seen"):
        assert learner.predict_one(_at_cosine(1.0), model).experts == {"global": 1.0}


def test_the_oldest_prompt_makes_room() -> None:
    """A history of three holds the last three."""
    learner = SimilarityLearner(SimilaritySettings(history_prompts=3))
    for tokens in (10, 20, 30, 40):
        _learn(learner, 1.0, tokens)
    assert learner.predict_one(_at_cosine(1.0), "m").distribution.lengths.tolist() == [20, 30, 40]


def test_unfinished_answers_are_dropped_as_published() -> None:
    """What ran into its limit teaches the published predictor nothing, which is its bias."""
    learner = SimilarityLearner()
    _learn(learner, 1.0, 20)
    _learn(learner, 1.0, 2_000, censored=True)
    assert learner.predict_one(_at_cosine(1.0), "m").distribution.lengths.tolist() == [20]
    assert TEXT_DIMENSIONS < DIMENSIONS
