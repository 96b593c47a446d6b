"""`evaluate`: learners side by side on one workload."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from rich.table import Table

from engine_adapter.workloads import BenchWorks, bench_works
from online_learning.evaluate import Evaluation
from online_learning.evaluate import evaluate as evaluate_prompts
from online_learning.mixture import MixtureLearner, solo_learners
from online_learning.prompt import LengthLearner, Prompt
from online_learning.similarity import SimilarityLearner
from store.records import MAX_PROMPT_TOKENS_SENT

MAX_TOKENS = 8192
"""Limit of answers whose workload has none."""
MAIN_LEARNER = "mixture"
"""The one that runs live."""
COLUMNS = (
    ("kendall_tau", "Kendall τ", "{:.3f}"),
    ("spearman", "Spearman", "{:.3f}"),
    ("crps_tokens", "CRPS tokens", "{:.1f}"),
    ("log_score", "log score", "{:.3f}"),
    ("coverage_50", "within 50 %", "{:.3f}"),
    ("coverage_90", "within 90 %", "{:.3f}"),
    ("predict_us_p50", "predict µs P50", "{:.0f}"),
    ("predict_us_p99", "P99", "{:.0f}"),
    ("learn_us_p50", "learn µs P50", "{:.0f}"),
    ("learn_us_p99", "P99", "{:.0f}"),
)


def evaluate_workload(  # noqa: PLR0913 - all by name
    workload: str,
    *,
    requests: int,
    warmup: int,
    seed: int,
    requests_per_token: float,
    clock: Callable[[], float],
    progress: Callable[[int], None],
) -> Evaluation:
    """Our learner, each of its experts alone and the published predictor on the same prompts in the same order."""
    works = bench_works(workload, requests=requests, warmup=0, seed=seed, max_tokens=MAX_TOKENS)
    learners: dict[str, LengthLearner] = {
        MAIN_LEARNER: MixtureLearner(),
        **solo_learners(),
        "sagesched-paper": SimilarityLearner(),
    }
    return evaluate_prompts(
        _prompts(works),
        learners,
        warmup=warmup,
        clock=clock,
        progress=progress,
        requests_per_token=requests_per_token,
    )


def quality_table(result: Evaluation) -> Table:
    """One row for each learner."""
    table = Table("learner", title=f"{result.requests} requests scored")
    for _, heading, _ in COLUMNS:
        table.add_column(heading, justify="right")
    table.add_column("MB", justify="right")
    for name, quality in result.learners.items():
        figures = [form.format(getattr(quality, column)) for column, _, form in COLUMNS]
        table.add_row(name, *figures, f"{quality.memory_bytes / 1e6:.1f}")
    return table


def _prompts(works: BenchWorks) -> Iterator[tuple[Prompt, int]]:
    for work, row in zip(works.measured, works.measured_rows, strict=True):
        half = MAX_PROMPT_TOKENS_SENT // 2
        ids = work.token_ids
        sent = ids if len(ids) <= MAX_PROMPT_TOKENS_SENT else ids[:half] + ids[-half:]
        prompt = Prompt(
            token_ids=np.asarray(sent, dtype=np.uint32),
            prompt_tokens=len(ids),
            max_tokens=work.max_tokens,
            temperature=work.temperature,
            model=row.model,
            tenant=work.tenant,
        )
        yield prompt, work.true_output_tokens
