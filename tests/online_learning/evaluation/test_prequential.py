import json
from collections.abc import Iterator

import numpy as np
import pytest

from online_learning.clustering.clusters import ClusterSettings
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.prequential import Evaluation, evaluate
from online_learning.length_learner import LengthLearner, Prompt
from online_learning.mixture.mixture import MixtureSettings, solo_learners
from online_learning.mixture.settings import LearnerSettings

SETTINGS = LearnerSettings(clusters=ClusterSettings(clusters=4, seed_prompts=50))


def _clusters() -> LengthLearner:
    return solo_learners(MixtureSettings(common=SETTINGS))["cluster"]


class _Ticks:
    """A clock on which every look takes a millisecond."""

    def __init__(self) -> None:
        self._looks = 0

    def __call__(self) -> float:
        self._looks += 1
        return self._looks / 1000.0


def _workload(count: int, max_tokens: int = 4_000) -> Iterator[tuple[Prompt, int]]:
    """Two families, of 30 and of 300 tokens."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        family = int(generator.integers(2))
        tokens = generator.integers(1_000 * family, 1_000 * family + 40, 25).astype(np.uint32)
        prompt = Prompt(token_ids=tokens, prompt_tokens=25, max_tokens=max_tokens, temperature=0.7, model="m")
        yield prompt, int((30, 300)[family] * np.exp(0.3 * generator.normal())) + 1


def _evaluated(count: int = 600, max_tokens: int = 4_000) -> Evaluation:
    return evaluate(
        _workload(count, max_tokens),
        {"global": GlobalLearner(SETTINGS), "cluster": _clusters()},
        warmup=200,
        clock=_Ticks(),
    )


def test_prompts_that_tell_families_apart_are_rewarded() -> None:
    """The clusters have the better scores and the ranks; both are calibrated."""
    evaluation = _evaluated()
    plain, clustered = evaluation.learners["global"], evaluation.learners["cluster"]
    assert evaluation.requests == 400
    assert clustered.crps_tokens < 0.6 * plain.crps_tokens
    assert clustered.log_score > plain.log_score + 0.4
    assert clustered.kendall_tau > 0.4
    assert plain.kendall_tau < 0.2
    for quality in (plain, clustered):
        assert 0.42 < quality.coverage_50 < 0.62
        assert 0.85 < quality.coverage_90 < 0.97
        assert sum(quality.pit_histogram) == pytest.approx(1.0)


def test_the_clock_given_is_the_clock_used() -> None:
    """Predicting and learning take a look each: a millisecond on a clock that ticks by looks."""
    quality = _evaluated(250).learners["cluster"]
    assert quality.predict_us_p50 == pytest.approx(1_000.0)
    assert quality.learn_us_p99 == pytest.approx(1_000.0)


def test_the_same_workload_gives_the_same_figures() -> None:
    """No chance is left to the run."""
    assert _evaluated(300) == _evaluated(300)


def test_the_object_is_the_documented_one() -> None:
    """Its keys are those that scripts rely on, and it is JSON."""
    document = json.loads(json.dumps(_evaluated(300).as_json("file.parquet", "cluster")))
    assert list(document) == [
        "workload",
        "requests",
        "kendall_tau",
        "spearman",
        "crps_tokens",
        "log_score",
        "coverage_50",
        "coverage_90",
        "predict_us_p50",
        "predict_us_p99",
        "learn_us_p50",
        "learn_us_p99",
        "experts",
    ]
    assert set(document["experts"]) == {"global", "cluster"}
    weights = [expert["weight"] for expert in document["experts"].values()]
    assert sum(weights) == pytest.approx(1.0)


def test_answers_beyond_max_tokens_are_scored_as_cut() -> None:
    """A cut at 100 leaves the long family censored: no prediction is punished for what could not be seen."""
    quality = _evaluated(max_tokens=100).learners["cluster"]
    assert quality.crps_tokens < 20.0
    assert 0.85 < quality.coverage_90 < 0.97


def test_progress_is_told_after_every_request() -> None:
    """Warm-up included."""
    told: list[int] = []
    evaluate(_workload(30), {"global": GlobalLearner()}, warmup=10, clock=_Ticks(), progress=told.append)
    assert told == list(range(1, 31))


def test_a_workload_shorter_than_its_warm_up_has_no_figures() -> None:
    """Nothing was scored, and that is what is said."""
    evaluation = evaluate(_workload(5), {"global": GlobalLearner()}, warmup=10, clock=_Ticks())
    assert evaluation == Evaluation(requests=0, learners={})


def test_a_late_length_teaches_late() -> None:
    """When no answer ends before the last request arrives, nothing is learnt: the clusters know no more than at first."""
    prompt_count = 600
    late = evaluate(
        _workload(prompt_count),
        {"global": GlobalLearner(SETTINGS), "cluster": _clusters()},
        warmup=200,
        clock=_Ticks(),
        requests_per_token=1_000.0,
    )
    vague = GlobalLearner(SETTINGS).prior("m").quantile(0.5)
    assert late.learners["cluster"].crps_tokens == late.learners["global"].crps_tokens
    assert late.learners["cluster"].kendall_tau == 0.0
    assert late.learners["cluster"].learn_us_p50 == 0.0
    assert vague > 100


def test_short_answers_teach_before_long_ones() -> None:
    """Delayed by its length, a stream is learnt short ones first; in the end what was learnt late counts nearly as much."""
    learners = [
        evaluate(
            _workload(600),
            {"cluster": _clusters()},
            warmup=300,
            clock=_Ticks(),
            requests_per_token=requests_per_token,
        ).learners["cluster"]
        for requests_per_token in (0.0, 0.1)
    ]
    assert learners[1].log_score != learners[0].log_score
    assert learners[1].log_score > learners[0].log_score - 0.1


def test_memory_is_what_the_learner_holds() -> None:
    """At least its clusters' counts."""
    held = _evaluated(300).learners
    assert held["cluster"].memory_bytes > held["global"].memory_bytes > 10_000
