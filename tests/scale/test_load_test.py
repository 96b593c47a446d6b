"""The load test, small: it starts what it needs, loses nothing and ends everything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controller.benchmark.system.load_report import load_tables
from controller.benchmark.system.load_test import LoadSpec, run_load_test
from engine_adapter.serving.fleet import bursts_of
from store.errors import BadInputError, ConfigError
from store.history.segments import FAN_IN, MERGED_BYTES, Segment, merges


def test_a_small_load_is_served_and_told(tmp_path: Path) -> None:
    """Every request of three engines in two processes gets a table, every fact is durable, nothing is dropped."""
    spec = LoadSpec(
        engines=3, rate_rps=5.0, seconds=6.0, warmup_s=2.0, window_s=2.0, fleets=2, token_s=0.002, watch=True
    )
    told: list[int] = []
    result = run_load_test(spec, folder=tmp_path, clock=time.time, pause=time.sleep, progress=told.append)
    assert told == [0, 1, 2, 3, 4]
    assert len(result.measured) == 3
    assert result.tables >= result.requests > 20
    assert (result.dropped, result.unacknowledged) == (0, 0)
    assert result.p50_s is not None
    assert 0.0 < result.p50_s <= result.longest_s
    assert all(window.cpu_share > 0.0 and window.rss_bytes > 1e8 for window in result.windows)
    assert result.as_json()["dashboard_share"] == pytest.approx(
        result.mean("cpu_share", watched=True) - result.mean("cpu_share", watched=False)
    )
    assert result.pauses["waiting"].count > 50
    assert all(0.0 <= pauses.longer_share <= 1.0 and pauses.p999_s > 0.0 for pauses in result.pauses.values())
    figures, pauses, course = load_tables(result)
    assert (pauses.row_count, course.row_count) == (len(result.pauses), len(result.windows))
    assert figures.row_count > pauses.row_count


@pytest.mark.parametrize("wrong", [{"engines": 0}, {"rate_rps": 0.0}, {"seconds": 5.0}, {"warmup_s": -1.0}])
def test_a_load_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    """Before anything is started, with the value and the remedy."""
    with pytest.raises(ConfigError, match="give"):
        LoadSpec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "1/2", "a/b/c", "1000/100/5", "0/1/1", "1/0/1"])
def test_bursts_that_make_no_sense_are_refused(text: str) -> None:
    """A burst that takes longer than the time until the next one is none."""
    with pytest.raises(BadInputError, match="REQUESTS/RATE/SECONDS"):
        bursts_of(text)


@pytest.mark.parametrize("folder", ["20260102-03", "20260102-02", "20260101"])
def test_no_merge_makes_more_than_its_bound(folder: str) -> None:
    """However much an hour or a day holds, a merge holds the writer up for no more than its bound."""
    size = MERGED_BYTES // 3
    active = [_segment(number, folder, size) for number in range(2 * FAN_IN)]
    found = merges(active, "20260102-03")
    assert all(sum(source.bytes for source in merge.sources) <= MERGED_BYTES for merge in found)
    if folder == "20260102-03":
        assert not found, "in the present hour as many as are merged at once are too much"
    else:
        assert [len(merge.sources) for merge in found] == [3] * (2 * FAN_IN // 3) + [2]


def _segment(number: int, folder: str, size: int) -> Segment:
    path = f"segments/snapshots/{folder}/{number:012d}.parquet"
    return Segment(number, "snapshots", path, 0, 1, 10, size, float(number), float(number))
