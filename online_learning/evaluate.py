"""Prequential evaluation: every prompt is first predicted, then learnt from, in the order of the workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import kendalltau, spearmanr

from online_learning.prompt import LengthLearner, Observation, Prompt
from online_learning.scoring import Score, score, summarise


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerQuality:
    """How well and how fast one learner predicted after the warm-up."""

    kendall_tau: float
    """Of the belief's median with the length; 0 when the medians are all equal."""
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


def evaluate(
    prompts: Iterable[tuple[Prompt, int]],
    learners: Mapping[str, LengthLearner],
    *,
    warmup: int,
    clock: Callable[[], float],
    progress: Callable[[int], None] = lambda _done: None,
) -> Evaluation:
    """Predict, score, then teach every answer to every learner.

    Args:
        prompts: prompts with the lengths of their answers in tokens; an answer that is longer than its prompt's
            max_tokens is cut there and known as censored, as it would be live.
        learners: by name; each starts as it is given.
        warmup: requests at the start that are learnt from but neither scored nor timed.
        clock: seconds, to time the learners with.
        progress: told the number of requests done, after each.
    """
    records = {name: _Record() for name in learners}
    uniforms = np.random.default_rng(_PIT_SEED)
    requests = 0
    for requests, (prompt, length_tokens) in enumerate(prompts, start=1):
        observation = Observation(min(length_tokens, prompt.max_tokens), censored=length_tokens > prompt.max_tokens)
        uniform = float(uniforms.random())
        for name, learner in learners.items():
            step = _step(learner, prompt, observation, uniform, clock)
            if requests > warmup:
                records[name].add(step, observation)
        progress(requests)
    scored = max(0, requests - warmup)
    qualities = {name: record.quality() for name, record in records.items()} if scored else {}
    return Evaluation(requests=scored, learners=qualities)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One request through one learner."""

    score: Score
    median_tokens: int
    experts: dict[str, float]
    predict_s: float
    learn_s: float
    drifts: int


def _step(
    learner: LengthLearner, prompt: Prompt, observation: Observation, uniform: float, clock: Callable[[], float]
) -> _Step:
    started_s = clock()
    features = learner.features(prompt)
    forecast = learner.predict_one(features, prompt.model)
    belief = forecast.distribution.cut(prompt.max_tokens)
    predicted_s = clock()
    verdict = score(belief, observation, uniform)
    learning_s = clock()
    drifts = learner.learn_one(features, prompt.model, observation)
    return _Step(
        score=verdict,
        median_tokens=belief.quantile(0.5),
        experts=forecast.experts,
        predict_s=predicted_s - started_s,
        learn_s=clock() - learning_s,
        drifts=len(drifts),
    )


@dataclass(slots=True)
class _Record:
    """What one learner did; grows with the workload."""

    steps: list[_Step] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, step: _Step, observation: Observation) -> None:
        self.steps.append(step)
        self.lengths.append(observation.output_tokens)

    def quality(self) -> LearnerQuality:
        calibration = summarise(step.score for step in self.steps)
        assert calibration is not None, "there must be a scored request"
        medians = [step.median_tokens for step in self.steps]
        predict_us = [1e6 * step.predict_s for step in self.steps]
        learn_us = [1e6 * step.learn_s for step in self.steps]
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
            drifts=sum(step.drifts for step in self.steps),
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
