from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.records import Preempted


def test_a_request_is_one_row_however_often_it_is_told(tmp_path: Path, make: Any) -> None:
    """Resent arrivals, a second prediction and lost facts neither double a request nor hide it."""
    preempted = Preempted(request_id="running", time_s=103.0, lost_tokens=5, attained_tokens=3)
    records = [
        make.arrived("done"),
        make.prediction("done", 20),
        make.first_token("done"),
        make.finished("done"),
        make.arrived("done", resent=True),
        make.arrived("done", resent=True),
        make.arrived("running"),
        make.first_token("running", 101.0),
        preempted,
        preempted,
        make.arrived("running", resent=True),
        make.arrived("only-resent", resent=True),
        make.arrived("only-resent", resent=True),
        make.finished("arrival-lost"),
    ]
    now_s = iter(range(100))
    with HistoryWriter(tmp_path, clock=lambda: float(next(now_s))) as writer:
        writer.append([make.entry(make.engine())])
        writer.append([make.entry(record) for record in records])
        writer.append([make.entry(make.prediction("done", 99))])
        writer.append([make.entry(make.arrived("done", 500.0), None, "another session")])
    with open_history(tmp_path) as connection:
        rows = connection.sql(
            "SELECT request_id, model, reason, output_tokens, p50_tokens, preemptions, recomputed_tokens, priority, ttft_s"
            " FROM requests ORDER BY request_id, model"
        ).fetchall()
    assert rows == [
        ("arrival-lost", "m", "stop", 10, None, 1, 9, None, 1.0),
        ("done", "m", "stop", 10, 20, 1, 9, 1, 1.0),
        ("done", None, None, None, None, 0, None, 1, None),
        ("only-resent", "m", None, None, None, 0, None, 1, None),
        ("running", "m", None, None, None, 2, 10, 1, 1.0),
    ]


@pytest.fixture
def filled(tmp_path: Path, make: Any) -> tuple[Path, list[tuple[float, float]]]:
    """A history of 300 answers and their arrivals and ends."""
    chance = random.Random(3)
    times = []
    with HistoryWriter(tmp_path) as writer:
        writer.append([make.entry(make.engine())])
        for number in range(300):
            arrival_s = chance.uniform(0.0, 300.0)
            end_s = arrival_s + chance.uniform(1.5, 60.0)
            times.append((arrival_s, end_s))
            name = f"r{number}"
            facts = [make.arrived(name, arrival_s), make.finished(name, arrival_s, end_s)]
            writer.append([make.entry(fact, number + 1) for fact in facts])
            writer.append([make.entry(make.prediction(name)), make.entry(make.outcome(name, end_s))])
    return tmp_path, times


def test_latencies_by_minute_are_what_numpy_says(filled: tuple[Path, list[tuple[float, float]]]) -> None:
    """Counts, means and percentiles of every minute."""
    path, times = filled
    with open_history(path) as connection:
        rows = connection.sql("SELECT * FROM latency_by_minute").to_arrow_table().to_pylist()
    assert sum(row["requests"] for row in rows) == len(times)
    for row in rows:
        spans_s = [end_s - arrival_s for arrival_s, end_s in times if end_s // 60 * 60 == row["minute_s"]]
        assert row["requests"] == len(spans_s)
        assert row["mean_ttlt_s"] == pytest.approx(np.mean(spans_s))
        assert row["p90_ttlt_s"] == pytest.approx(np.quantile(spans_s, 0.9))
        assert row["p99_ttlt_s"] == pytest.approx(np.quantile(spans_s, 0.99))
        assert row["max_ttlt_s"] == pytest.approx(max(spans_s))
        assert row["output_tokens"] == 10 * len(spans_s)
