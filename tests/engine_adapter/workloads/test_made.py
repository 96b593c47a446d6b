"""Workloads that are made from published statistics, and files that are converted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engine_adapter.workloads.formats import load_workload
from engine_adapter.workloads.made import KINDS, made
from engine_adapter.workloads.parquet import about_parquet, write_parquet
from engine_adapter.workloads.requests import bench_trace
from store.errors import BadInputError, WorkloadError


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_rows_and_a_file_gives_them_back(kind: str, tmp_path: Path) -> None:
    """Byte for byte the same file, with what it is in its metadata; another seed gives another."""
    rows = made(kind, requests=300, seed=1).rows
    assert len(rows) == 300
    assert [row.arrival_s for row in rows] == sorted(row.arrival_s for row in rows if row.arrival_s is not None) or (
        kind == "prefix-4k-two"
    )
    files = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for file in files:
        write_parquet(file, made(kind, requests=300, seed=1).rows, {"made": kind, "seed": 1})
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_workload(files[0]).rows == rows
    assert about_parquet(files[0]) == {"made": kind, "seed": 1}
    assert made(kind, requests=300, seed=2).rows != rows


@pytest.mark.parametrize(
    ("kind", "prompt", "answer", "rate_rps"),
    [("azure-conv", 1020, 129, 5.5), ("azure-code", 1500, 13, None), ("mooncake", 6900, 350, 3.4)],
)
def test_a_made_workload_has_the_figures_of_its_source(
    kind: str, prompt: float, answer: float, rate_rps: float | None
) -> None:
    """Medians within a tenth, of sums of turns within a third."""
    rows = made(kind, requests=8000, seed=3).rows
    assert np.median([row.prompt_len_tokens for row in rows]) == pytest.approx(
        prompt, rel=0.1 if kind[0] == "a" else 0.34
    )
    assert np.median([row.response_len_tokens for row in rows]) == pytest.approx(answer, rel=0.1)
    if rate_rps is not None:
        times_s = [row.arrival_s or 0.0 for row in rows]
        assert len(rows) / (times_s[-1] - times_s[0]) == pytest.approx(rate_rps, rel=0.25)


def test_conversations_share_what_was_said_before() -> None:
    """A turn's prompt begins with the blocks of the former one, as far as these were full."""
    by_session: dict[str, list[tuple[int, ...]]] = {}
    for row in made("chat-sessions", requests=2000, seed=1).rows:
        assert row.session is not None
        by_session.setdefault(row.session, []).append(row.block_hashes)
    followed = [turns for turns in by_session.values() if len(turns) > 3]
    assert len(followed) > 50
    for turns in followed:
        for former, following in pairwise(turns):
            full = len(former) - 1
            assert following[:full] == former[:full]


def test_a_benchmark_runs_a_made_file(tmp_path: Path) -> None:
    """It is a workload as any other, with times of its own and prefixes."""
    file = tmp_path / "m.parquet"
    write_parquet(file, made("chat-sessions", requests=200, seed=1).rows, {})
    trace = bench_trace(file, requests=100, warmup=50, seed=1)
    assert trace.timed
    assert len(trace.measured) == 100


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """With what there is."""
    with pytest.raises(BadInputError, match="choose one of azure-conv"):
        made("azure", requests=1, seed=1)
    with pytest.raises(BadInputError, match="at least 1"):
        made("azure-conv", requests=0, seed=1)
    with pytest.raises(WorkloadError, match="cannot be written"):
        write_parquet(tmp_path / "no" / "m.parquet", made("azure-conv", requests=1, seed=1).rows, {})
