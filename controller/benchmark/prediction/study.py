"""`evaluate`: compares learners on one workload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from scipy.stats import kendalltau

from controller.reports.tables import text_table
from engine_adapter.workloads.requests import BenchTrace, bench_trace
from online_learning.calibration.scoring import Score
from online_learning.distribution import FloatArray, LengthDistribution
from online_learning.evaluation.ablation import without_each_expert, without_each_feature
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.paper_predictor import SimilarityLearner
from online_learning.evaluation.prequential import Evaluation
from online_learning.evaluation.prequential import evaluate as evaluate_prompts
from online_learning.length_learner import LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, solo_learners
from store.bounds import head_and_tail

MAX_TOKENS = 8192
"""Limit of answers whose workload has none."""
MAIN_LEARNER = "mixture"
"""Name of the learner that runs live."""
TASK_REQUESTS = 300
"""Smallest number of scored requests of a task with a row of its own; figures of fewer would be noise."""
FIGURES = (
    "pit",
    "crps_tokens",
    "log_score",
    "within_50",
    "within_90",
    "p10_tokens",
    "p50_tokens",
    "p90_tokens",
    "output_tokens",
    "censored",
)
COLUMNS = (
    ("kendall_tau", "Kendall τ", "{:.3f}"),
    ("spearman", "Spearman", "{:.3f}"),
    ("crps_tokens", "CRPS tokens", "{:.1f}"),
    ("log_score", "log score", "{:.3f}"),
    ("coverage_50", "within 50%", "{:.3f}"),
    ("coverage_90", "within 90%", "{:.3f}"),
    ("predict_us_p50", "predict µs P50", "{:.0f}"),
    ("predict_us_p99", "P99", "{:.0f}"),
    ("learn_us_p50", "learn µs P50", "{:.0f}"),
    ("learn_us_p99", "P99", "{:.0f}"),
)


@dataclass(frozen=True, slots=True, eq=False)
class LearnerRecord:
    """The predictions of one learner for each scored request and their scores, one column for each figure."""

    figures: FloatArray
    """Rows are requests; columns are `FIGURES`."""

    def of(self, name: str) -> FloatArray:
        """One figure of every request."""
        return self.figures[:, FIGURES.index(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The results of several learners on one workload, request by request."""

    workload: str
    result: Evaluation
    tasks: tuple[str, ...]
    """The task of each scored request, in order."""
    records: dict[str, LearnerRecord]


def study_workload(
    workload: str,
    *,
    requests: int,
    warmup: int,
    seed: int,
    requests_per_token: float,
    ablation: bool = False,
    clock: Callable[[], float],
    progress: Callable[[int], None],
) -> Study:
    """Score our learner, each of its experts alone and the published predictor on the same prompts in the same order.

    With ``ablation``, score our learner without each expert and without each feature, in place of the experts alone.
    """
    trace = bench_trace(workload, requests=requests, warmup=0, seed=seed, max_tokens=MAX_TOKENS)
    compared: dict[str, LengthLearner] = {
        MAIN_LEARNER: MixtureLearner(),
        **(_ablated() if ablation else solo_learners()),
        "sagesched-paper": SimilarityLearner(),
    }
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in compared}

    def watch(name: str, _number: int, predicted: LengthDistribution, observation: Observation, score: Score) -> None:
        p10, p50, p90 = (predicted.quantile(probability) for probability in (0.1, 0.5, 0.9))
        figures = (score.pit, score.crps_tokens, score.log_score, score.within_50, score.within_90)
        rows[name].append((*figures, p10, p50, p90, observation.output_tokens, observation.censored))

    result = evaluate_prompts(
        _prompts(trace),
        compared,
        warmup=warmup,
        clock=clock,
        progress=progress,
        requests_per_token=requests_per_token,
        watch=watch,
    )
    records = {name: LearnerRecord(np.array(figures).reshape(-1, len(FIGURES))) for name, figures in rows.items()}
    tasks = tuple(row.task for row in trace.measured_rows[warmup:])
    return Study(workload=trace.name, result=result, tasks=tasks, records=records)


def _ablated() -> dict[str, LengthLearner]:
    return {"global": GlobalLearner(), **without_each_expert(), **without_each_feature()}


def quality_table(result: Evaluation) -> Table:
    """One row for each learner."""
    headings = ("learner", *(title for _, title, _ in COLUMNS), "MB")
    table = text_table(f"{result.requests} requests scored", headings, left=1)
    for name, quality in result.learners.items():
        figures = [form.format(getattr(quality, column)) for column, _, form in COLUMNS]
        table.add_row(name, *figures, f"{quality.memory_bytes / 1e6:.1f}")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuality:
    """Scores of our learner and of the published one on one task."""

    task: str
    requests: int
    coverage_50: float
    coverage_90: float
    kendall_tau: float
    crps_tokens: float
    paper_crps_tokens: float
    log_score: float
    global_log_score: float


def task_qualities(study: Study) -> list[TaskQuality]:
    """Every task with at least `TASK_REQUESTS` scored requests, the most frequent first."""
    counts = Counter(study.tasks).most_common()
    return [_task_quality(study, task) for task, requests in counts if requests >= TASK_REQUESTS]


def task_table(study: Study) -> Table | None:
    """One row for each frequent task; None when there is none."""
    qualities = task_qualities(study)
    if not qualities:
        return None
    scores = ("within 50%", "within 90%", "Kendall τ", "CRPS", "paper's", "log score", "global's")
    title = f"{MAIN_LEARNER} by task, those with {TASK_REQUESTS} requests or more"
    table = text_table(title, ("task", "requests", *scores), left=1)
    for quality in qualities:
        table.add_row(
            quality.task,
            str(quality.requests),
            f"{quality.coverage_50:.3f}",
            f"{quality.coverage_90:.3f}",
            f"{quality.kendall_tau:.3f}",
            f"{quality.crps_tokens:.1f}",
            f"{quality.paper_crps_tokens:.1f}",
            f"{quality.log_score:.3f}",
            f"{quality.global_log_score:.3f}",
        )
    return table


def _task_quality(study: Study, task: str) -> TaskQuality:
    chosen = np.array([name == task for name in study.tasks])
    ours = LearnerRecord(study.records[MAIN_LEARNER].figures[chosen])
    medians, lengths = ours.of("p50_tokens"), ours.of("output_tokens")
    ranked = np.unique(medians).size > 1 and np.unique(lengths).size > 1
    return TaskQuality(
        task=task,
        requests=int(chosen.sum()),
        coverage_50=float(ours.of("within_50").mean()),
        coverage_90=float(ours.of("within_90").mean()),
        kendall_tau=float(kendalltau(medians, lengths)[0]) if ranked else 0.0,
        crps_tokens=float(ours.of("crps_tokens").mean()),
        paper_crps_tokens=float(study.records["sagesched-paper"].of("crps_tokens")[chosen].mean()),
        log_score=float(ours.of("log_score").mean()),
        global_log_score=float(study.records["global"].of("log_score")[chosen].mean()),
    )


def task_prompts(workload: str, *, requests: int, seed: int) -> list[tuple[str, Prompt, int]]:
    """Task, prompt as an engine would send it, and length of the answer, of the first requests of a workload."""
    trace = bench_trace(workload, requests=requests, warmup=0, seed=seed, max_tokens=MAX_TOKENS)
    tasks = (row.task for row in trace.measured_rows)
    return [(task, prompt, tokens) for task, (prompt, tokens) in zip(tasks, _prompts(trace), strict=True)]


def _prompts(trace: BenchTrace) -> Iterator[tuple[Prompt, int]]:
    for request, row in zip(trace.measured, trace.measured_rows, strict=True):
        prompt = Prompt(
            token_ids=np.asarray(head_and_tail(request.token_ids), dtype=np.uint32),
            prompt_tokens=len(request.token_ids),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            model=row.model,
            tenant=request.tenant,
            session=request.session,
            expected_output_tokens=request.expected_output_tokens,
        )
        yield prompt, request.true_output_tokens
