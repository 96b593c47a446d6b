"""How well intervals can cover each task of a workload when prompts are all that is known.

A classifier that knows the task of every past prompt, which no learner here is, says how likely each task is for
the next prompts; the prediction is the mixture of the tasks' own length distributions, with the true ones. Whatever
coverage a task misses under this prediction, prompts do not determine. Usage: python docs/length_floor.py WORKLOAD.parquet TASK
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

WARMUP = 2_000
REFIT = 1_000
FEWEST = 300
FACTORS = (1.0, 4.0, 10.0)
"""The odds of the task that is named are multiplied by these: what widening for its sake would bring and cost."""


def main(workload: str, favoured: str) -> None:
    """Print CRPS and coverage of the 50 and 90 % intervals by task."""
    table = parquet.read_table(workload, columns=["task", "prompt", "response_len_tokens"])
    tasks, prompts = (np.array(table[name].to_pylist(), dtype=object) for name in ("task", "prompt"))
    lengths = table["response_len_tokens"].to_numpy()
    names, labels = np.unique(tasks.astype(str), return_inverse=True)
    chances = _told_classifier(prompts, labels)
    counts = np.bincount(labels[WARMUP:])
    frequent = [place for place in np.argsort(-counts) if counts[place] >= FEWEST]
    shown = Table("odds", "CRPS tokens", "all", *(str(names[place]) for place in frequent))
    task = int(np.searchsorted(names, favoured))
    for factor in FACTORS:
        tilted = _tilted(chances, task, factor)
        shown.add_row(*_row(f"{favoured} x {factor:g}", tilted, labels, lengths, frequent))
    Console(width=200).print(shown)


def _told_classifier(prompts: NDArray[np.object_], labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Chance of each task for every prompt after the warm-up, from the prompts and tasks before it."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]|\n+", lowercase=False)  # noqa: S106 - a pattern
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    features = make_union(words, characters).fit_transform(prompts)
    chances = []
    for first in range(WARMUP, len(labels), REFIT):
        fitted = LogisticRegression(C=20.0, max_iter=100).fit(features[:first], labels[:first])
        chances.append(fitted.predict_proba(features[first : first + REFIT]))
    return np.concatenate(chances)


def _tilted(chances: NDArray[np.float64], task: int, factor: float) -> NDArray[np.float64]:
    tilted = chances.copy()
    tilted[:, task] *= factor
    return np.asarray(tilted / tilted.sum(axis=1, keepdims=True))


def _row(
    name: str,
    chances: NDArray[np.float64],
    labels: NDArray[np.intp],
    lengths: NDArray[np.int64],
    frequent: list[np.intp],
) -> list[str]:
    grid = np.unique(lengths)
    cumulative = np.stack([(lengths[labels == task][:, None] <= grid).mean(axis=0) for task in range(chances.shape[1])])
    predicted = chances @ cumulative
    came, labels = lengths[WARMUP:], labels[WARMUP:]
    at = np.searchsorted(grid, came)
    rows = np.arange(came.size)
    below = np.where(at > 0, predicted[rows, np.maximum(at - 1, 0)], 0.0)
    transform = below + np.random.default_rng(0).random(came.size) * (predicted[rows, at] - below)
    crps = (((predicted - (came[:, None] <= grid)) ** 2)[:, :-1] @ np.diff(grid)).mean()
    within = [np.abs(transform - 0.5) <= half for half in (0.25, 0.45)]
    chosen = [np.ones(came.size, dtype=bool), *(labels == task for task in frequent)]
    return [
        name,
        f"{crps:.1f}",
        *(" / ".join(f"{100 * inside[rows].mean():.0f}" for inside in within) for rows in chosen),
    ]


if __name__ == "__main__":
    main(*sys.argv[1:3])
