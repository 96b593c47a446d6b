"""`evaluate --drift`: midway one family's answers become longer, another's shorter, and a third family appears.

It measures after how many answers the intervals have their nominal coverage again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rich.table import Table

from controller.benchmark.prediction.study import MAIN_LEARNER, task_prompts
from controller.reports.tables import text_table
from online_learning.calibration.scoring import Score
from online_learning.distribution import LengthDistribution
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.prequential import evaluate
from online_learning.length_learner import LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner
from store.errors import BadInputError

LONGER, SHORTER = 3.0, 0.3
"""Factors for the lengths of the two families."""

BLOCKS = (0, 100, 200, 400, 800)
"""Completions of a family since the change, at which blocks begin and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftBlock:
    """Scores of a family's answers between two counts of its completions after the change."""

    family: str
    change: str
    first: int
    last: int
    coverage_50: float
    coverage_90: float
    log_score: float
    global_log_score: float


def drift_study(
    workload: str,
    *,
    requests: int,
    seed: int,
    requests_per_token: float,
    clock: Callable[[], float],
    progress: Callable[[int], None],
) -> list[DriftBlock]:
    """Blocks of all three families, by family; the change comes when half of the requests have arrived.

    The most frequent task's answers become three times as long, the second's 0.3 times as long; the third's requests
    of the first half are left out. Raises `BadInputError` if the workload has fewer than three tasks.
    """
    rows = task_prompts(workload, requests=requests, seed=seed)
    changes = _changes([task for task, _, _ in rows], workload)
    served = _drifted(rows, changes)
    change_at = sum(before for before, *_ in served)
    scores: dict[str, list[Score]] = {MAIN_LEARNER: [], "global": []}

    def watch(name: str, _number: int, _predicted: LengthDistribution, _came: Observation, score: Score) -> None:
        scores[name].append(score)

    learners: dict[str, LengthLearner] = {MAIN_LEARNER: MixtureLearner(), "global": GlobalLearner()}
    evaluate(
        ((prompt, tokens) for _, _, prompt, tokens in served),
        learners,
        warmup=change_at,
        clock=clock,
        progress=progress,
        requests_per_token=requests_per_token,
        watch=watch,
    )
    after = [task for _, task, _, _ in served[change_at:]]
    return [block for task, change in changes.items() for block in _blocks(task, change, after, scores)]


def drift_table(blocks: Sequence[DriftBlock]) -> Table:
    """One row for each block."""
    headings = ("family", "change", "completions since", "within 50%", "within 90%", "log score", "global's")
    table = text_table(f"{MAIN_LEARNER} after a drift midway", headings, left=3)
    for block in blocks:
        figures = (block.coverage_50, block.coverage_90, block.log_score, block.global_log_score)
        span = f"{block.first + 1} to {block.last}"
        table.add_row(block.family, block.change, span, *(f"{figure:.3f}" for figure in figures))
    return table


def _changes(tasks: Sequence[str], workload: str) -> dict[str, str]:
    frequent = [task for task, _ in Counter(tasks).most_common(3)]
    if len(frequent) < 3:
        raise BadInputError(f"workload {workload!r} has {len(frequent)} tasks: a drift needs three")
    return dict(zip(frequent, (f"x {LONGER:g}", f"x {SHORTER:g}", "new"), strict=True))


def _drifted(rows: Sequence[tuple[str, Prompt, int]], changes: dict[str, str]) -> list[tuple[bool, str, Prompt, int]]:
    """For each request whether it comes before the change, its task, prompt and length."""
    factors = {f"x {factor:g}": factor for factor in (LONGER, SHORTER)}
    served = []
    for number, (task, prompt, tokens) in enumerate(rows):
        before = number < len(rows) // 2
        change = changes.get(task, "")
        if before and change == "new":
            continue
        factor = 1.0 if before else factors.get(change, 1.0)
        served.append((before, task, prompt, max(1, round(tokens * factor))))
    return served


def _blocks(task: str, change: str, after: Sequence[str], scores: dict[str, list[Score]]) -> list[DriftBlock]:
    places = [place for place, name in enumerate(after) if name == task]
    blocks = []
    for first, last in pairwise(BLOCKS):
        chosen = places[first:last]
        if not chosen:
            break
        ours = [scores[MAIN_LEARNER][place] for place in chosen]
        blocks.append(
            DriftBlock(
                family=task,
                change=change,
                first=first,
                last=first + len(chosen),
                coverage_50=float(np.mean([score.within_50 for score in ours])),
                coverage_90=float(np.mean([score.within_90 for score in ours])),
                log_score=float(np.mean([score.log_score for score in ours])),
                global_log_score=float(np.mean([scores["global"][place].log_score for place in chosen])),
            )
        )
    return blocks
