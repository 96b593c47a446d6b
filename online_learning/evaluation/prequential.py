"""Prequential evaluation: every prompt is first predicted, then learnt from, in the order of the workload."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from scipy.stats import kendalltau, spearmanr

from online_learning.calibration.scoring import Score, score, summarise
from online_learning.distribution import LengthDistribution
from online_learning.evaluation.memory import held_bytes
from online_learning.length_learner import Features, LengthLearner, Observation, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerQuality:
    """How well and how fast one learner predicted after the warm-up."""

    kendall_tau: float
    """Of the predicted median with the length; 0 when the medians are all equal."""
    spearman: float
    crps_tokens: float
    log_score: float
    coverage_50: float
    coverage_90: float
    pit_histogram: tuple[float, ...]
    predict_us_p50: float
    """Microseconds from prompt to distribution, features included."""
    predict_us_p99: float
    learn_us_p50: float
    learn_us_p99: float
    drifts: int
    memory_bytes: int
    """What the learner holds at the end."""
    expert_weights: dict[str, float]
    """Mean weight of each expert in the learner's mixtures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Learners side by side on the same prompts."""

    requests: int
    """Requests that were scored: those after the warm-up."""
    learners: dict[str, LearnerQuality]

    def as_json(self, workload: str, main: str) -> dict[str, object]:
        """The documented object: figures of the learner ``main`` on top, the log score of all under ``experts``."""
        quality = self.learners[main]
        figures: dict[str, object] = {name: getattr(quality, name) for name in _FIGURES}
        weights = quality.expert_weights
        return {
            "workload": workload,
            "requests": self.requests,
            **figures,
            "experts": {
                name: {"log_score": other.log_score, "weight": weights.get(name, 0.0)}
                for name, other in self.learners.items()
            },
        }


_PIT_SEED = 0
"""All learners and all runs randomise the PIT with the same draws."""

_FIGURES = (
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
)


Watch: TypeAlias = Callable[[str, int, LengthDistribution, Observation, Score], None]
"""Called with every scored prediction: learner, number of the request from 0, distribution, outcome, score."""


def evaluate(
    prompts: Iterable[tuple[Prompt, int]],
    learners: Mapping[str, LengthLearner],
    *,
    warmup: int,
    clock: Callable[[], float],
    progress: Callable[[int], None] = lambda _done: None,
    requests_per_token: float = 0.0,
    watch: Watch = lambda *_: None,
) -> Evaluation:
    """Predict, score, then teach every answer to every learner.

    Args:
        prompts: prompts with the lengths of their answers in tokens; an answer that is longer than its prompt's
            max_tokens is cut there and known as censored, as it would be live.
        learners: by name; each starts as it is given.
        warmup: requests at the start that are learnt from but neither scored nor timed.
        clock: seconds, to time the learners with.
        progress: called after each request with the number done.
        requests_per_token: requests that arrive while an answer grows by a token, after all of which it is learnt, the
            short ones before the long ones, as it is live. 0 teaches each answer at once; 3 requests a second and
            30 ms per token make 0.09.
        watch: called with every scored prediction.
    """
    records = {name: _Record() for name in learners}
    uniforms = np.random.default_rng(_PIT_SEED)
    feedback = _Feedback(learners, records, clock)
    requests = 0
    for requests, (prompt, length_tokens) in enumerate(prompts, start=1):
        observation = Observation(min(length_tokens, prompt.max_tokens), censored=length_tokens > prompt.max_tokens)
        uniform = float(uniforms.random())
        features: dict[str, Features] = {}
        for name, learner in _in_turn(learners, requests):
            features[name], predicted, step = _predict(learner, prompt, observation, uniform, clock)
            if requests > warmup:
                records[name].add(step, observation)
                watch(name, requests - 1, predicted, observation, step.score)
        feedback.expect(requests + requests_per_token * observation.output_tokens, features, prompt.model, observation)
        feedback.teach(until=requests, scored=requests > warmup)
        progress(requests)
    scored = max(0, requests - warmup)
    qualities = {name: record.quality(held_bytes(learners[name])) for name, record in records.items()} if scored else {}
    return Evaluation(requests=scored, learners=qualities)


def _in_turn(learners: Mapping[str, LengthLearner], number: int) -> Iterator[tuple[str, LengthLearner]]:
    """The learners, each second time from the last to the first: the first of them pays for what no cache holds yet."""
    return iter(learners.items()) if number % 2 else reversed(list(learners.items()))


class _Feedback:
    """Answers on their way to the learners, in the order in which they end."""

    def __init__(
        self, learners: Mapping[str, LengthLearner], records: Mapping[str, _Record], clock: Callable[[], float]
    ) -> None:
        self._learners = learners
        self._records = records
        self._clock = clock
        self._waiting: list[tuple[float, int, dict[str, Features], str, Observation]] = []
        self._serial = 0

    def expect(self, due: float, features: dict[str, Features], model: str, observation: Observation) -> None:
        """Teach an answer when ``due`` requests have arrived."""
        self._serial += 1
        heapq.heappush(self._waiting, (due, self._serial, features, model, observation))

    def teach(self, *, until: int, scored: bool) -> None:
        """Teach what has ended once ``until`` requests have arrived."""
        while self._waiting and self._waiting[0][0] <= until:
            _, _, features, model, observation = heapq.heappop(self._waiting)
            for name, learner in _in_turn(self._learners, until):
                started_s = self._clock()
                drifts = learner.learn_one(features[name], model, observation)
                if scored:
                    self._records[name].learnt(self._clock() - started_s, len(drifts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One request predicted by one learner."""

    score: Score
    median_tokens: int
    experts: dict[str, float]
    predict_s: float


def _predict(
    learner: LengthLearner, prompt: Prompt, observation: Observation, uniform: float, clock: Callable[[], float]
) -> tuple[Features, LengthDistribution, _Step]:
    started_s = clock()
    features = learner.features(prompt)
    forecast = learner.predict_one(features, prompt.model)
    predicted = forecast.distribution.cut(prompt.max_tokens)
    predict_s = clock() - started_s
    step = _Step(
        score=score(predicted, observation, uniform),
        median_tokens=predicted.quantile(0.5),
        experts=forecast.experts,
        predict_s=predict_s,
    )
    return features, predicted, step


@dataclass(slots=True)
class _Record:
    """What one learner did; grows with the workload."""

    steps: list[_Step] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    learn_s: list[float] = field(default_factory=list)
    drifts: int = 0

    def learnt(self, learn_s: float, drifts: int) -> None:
        self.learn_s.append(learn_s)
        self.drifts += drifts

    def add(self, step: _Step, observation: Observation) -> None:
        self.steps.append(step)
        self.lengths.append(observation.output_tokens)

    def quality(self, memory_bytes: int) -> LearnerQuality:
        calibration = summarise(step.score for step in self.steps)
        assert calibration is not None, "there must be a scored request"
        medians = [step.median_tokens for step in self.steps]
        predict_us = [1e6 * step.predict_s for step in self.steps]
        learn_us = [1e6 * learn_s for learn_s in self.learn_s] or [0.0]
        return LearnerQuality(
            kendall_tau=_correlation(kendalltau, medians, self.lengths),
            spearman=_correlation(spearmanr, medians, self.lengths),
            crps_tokens=calibration.crps_tokens,
            log_score=calibration.log_score,
            coverage_50=calibration.coverage_50,
            coverage_90=calibration.coverage_90,
            pit_histogram=calibration.pit_histogram,
            predict_us_p50=float(np.percentile(predict_us, 50)),
            predict_us_p99=float(np.percentile(predict_us, 99)),
            learn_us_p50=float(np.percentile(learn_us, 50)),
            learn_us_p99=float(np.percentile(learn_us, 99)),
            drifts=self.drifts,
            memory_bytes=memory_bytes,
            expert_weights=self._expert_weights(),
        )

    def _expert_weights(self) -> dict[str, float]:
        names = sorted({name for step in self.steps for name in step.experts})
        return {name: float(np.mean([step.experts.get(name, 0.0) for step in self.steps])) for name in names}


def _correlation(measure: Callable[..., tuple[float, float]], medians: list[int], lengths: list[int]) -> float:
    """Rank correlation; 0 where one side is constant and ranks say nothing."""
    if len(set(medians)) < 2 or len(set(lengths)) < 2:
        return 0.0
    return float(measure(medians, lengths)[0])
