from pathlib import Path

import pytest

from dashboard.archive import BUCKETS_SHOWN, Archive, ArchiveTrouble, read_archive


def archive(answer: object) -> Archive:
    assert isinstance(answer, Archive)
    return answer


def test_the_whole_history_is_summed(recorded: Path) -> None:
    """Every request is counted once, in its bucket, with its latencies."""
    whole = archive(read_archive(recorded, None))
    counts = {name: rows for name, _, rows in whole.rows}
    assert counts["requests"] == counts["completions"] == counts["predictions"] == 300
    assert sum(count for _, count in whole.finished) == 300
    assert whole.newest_s == 1_767_225_600.0
    busy = [row for row in whole.ttlt if row.requests]
    assert all(row.p50_s is not None and 2.0 <= row.p50_s <= 8.0 for row in busy)
    assert {row.p50_s for row in whole.ttft} == {1.0}
    assert {row.within_90 for row in whole.coverage} == {1.0}
    assert sum(row.within_50 or 0 for row in whole.coverage) / len(whole.coverage) == pytest.approx(0.5, abs=0.05)


def test_a_range_counts_back_from_the_newest_request(recorded: Path) -> None:
    """Old history is as readable as fresh: no clock is asked."""
    last = archive(read_archive(recorded, 600.0))
    assert sum(count for _, count in last.finished) == 121
    assert len(last.finished) <= BUCKETS_SHOWN + 2


def test_an_empty_history_has_tables_and_no_rows(empty_history: Path) -> None:
    """Nothing recorded is no trouble."""
    nothing = archive(read_archive(empty_history, None))
    assert nothing.newest_s is None
    assert nothing.rows
    assert all(rows == 0 for _, _, rows in nothing.rows)


def test_a_missing_or_broken_history_is_a_value(tmp_path: Path) -> None:
    """The page says what is the matter instead of failing."""
    absent = read_archive(tmp_path / "nowhere", None)
    assert isinstance(absent, ArchiveTrouble)
    assert absent.kind == "absent"
    (tmp_path / "catalog.duckdb").write_bytes(b"no database")
    assert isinstance(read_archive(tmp_path, None), ArchiveTrouble)
