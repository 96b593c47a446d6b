"""The evaluation's page and its table by task."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from controller.benchmark.prediction.report import reliability, write_html
from controller.benchmark.prediction.study import (
    FIGURES,
    MAIN_LEARNER,
    LearnerRecord,
    Study,
    study_workload,
    task_qualities,
    task_table,
)
from controller.cli.output import print_table
from online_learning.evaluation.prequential import Evaluation


@pytest.fixture(scope="module")
def study() -> Study:
    """A small study of the synthetic workload."""
    return study_workload(
        "synthetic",
        requests=160,
        warmup=60,
        seed=1,
        requests_per_token=0.0,
        clock=lambda: 0.0,
        progress=lambda _done: None,
    )


def _record(pit: np.ndarray, **columns: np.ndarray) -> LearnerRecord:
    named = {"pit": pit} | columns
    empty = np.zeros(len(pit))
    return LearnerRecord(np.stack([np.asarray(named.get(name, empty), dtype=float) for name in FIGURES], axis=1))


@pytest.mark.slow
def test_a_study_has_every_learner_and_request(study: Study) -> None:
    """The mixture, its experts, the global distribution and the published predictor, on the same scored requests."""
    assert {MAIN_LEARNER, "global", "sagesched-paper", "cluster", "neighbours"} <= set(study.records)
    assert set(study.records) == set(study.result.learners)
    lengths = [record.of("output_tokens").tolist() for record in study.records.values()]
    assert all(each == lengths[0] for each in lengths)
    assert len(study.tasks) == len(lengths[0]) == study.result.requests == 100
    for name, quality in study.result.learners.items():
        assert study.records[name].of("crps_tokens").mean() == pytest.approx(quality.crps_tokens)
        assert study.records[name].of("within_90").mean() == pytest.approx(quality.coverage_90)


def test_reliability_is_the_diagonal_for_calibrated_predictions_and_below_it_for_short_ones() -> None:
    """The share of answers within each quantile."""
    uniform = np.random.default_rng(1).random(50_000)
    nominal, observed = reliability(_record(uniform))
    assert np.abs(np.subtract(nominal, observed)).max() < 0.01
    _, observed = reliability(_record(np.sqrt(uniform)))
    assert observed[20] == pytest.approx(0.25, abs=0.01)
    assert (observed[0], observed[-1]) == (0.0, 1.0)


def test_frequent_tasks_have_a_row_of_their_own() -> None:
    """With the figures of their own requests; rare ones have none."""
    generator = np.random.default_rng(2)
    tasks = ("often",) * 400 + ("seldom",) * 200 + ("always",) * 500
    within = np.concatenate([generator.random(400) < 0.9, np.zeros(200), np.ones(500)])
    lengths = np.arange(1_100.0)
    record = _record(generator.random(1_100), within_90=within, p50_tokens=lengths, output_tokens=lengths)
    study = Study(
        workload="w",
        result=Evaluation(requests=1_100, learners={}),
        tasks=tasks,
        records={MAIN_LEARNER: record, "global": record, "sagesched-paper": record},
    )
    always, often = task_qualities(study)
    assert (always.task, always.requests, always.coverage_90) == ("always", 500, 1.0)
    assert always.kendall_tau == pytest.approx(1.0)
    assert (often.task, often.coverage_90) == ("often", pytest.approx(within[:400].mean()))
    table = task_table(study)
    assert table is not None
    assert table.row_count == 2
    print_table(table)


def test_without_frequent_tasks_there_is_no_table(study: Study) -> None:
    """Figures of a handful of requests would be chance."""
    assert task_table(study) is None


def test_the_page_stands_on_its_own(study: Study, tmp_path: Path) -> None:
    """All plots are in it, every learner is named, names are escaped, and nothing is loaded from elsewhere."""
    page = tmp_path / "e.html"
    write_html(study, page)
    text = page.read_text(encoding="utf-8")
    assert text.count('class="plotly-graph-div"') >= 5
    for title in ("Reliability", "PIT", "CRPS", "Log score", "against what came"):
        assert title in text
    assert all(name in text for name in study.records)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)\s*=", text)
