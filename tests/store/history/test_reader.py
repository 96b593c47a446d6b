from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from store.history.reader import open_history
from store.history.writer import HistoryWriter

PLAIN_READER = """
import sys, time, duckdb
seen = []
while len(seen) < 100 or (seen[-1] == 0 and len(seen) < 2000):
    with duckdb.connect(sys.argv[1], read_only=True) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM completions").fetchone()
        (requests,) = connection.execute("SELECT count(*) FROM requests").fetchone()
        assert rows == requests, (rows, requests)
    seen.append(rows)
    time.sleep(0.01)
assert seen == sorted(seen), seen
print(len(seen), len(set(seen)), seen[-1])
"""


@pytest.mark.slow
def test_plain_duckdb_in_another_process_reads_a_hundred_times_beside_the_writer(tmp_path: Path, make: Any) -> None:
    """From before the first sealing on, without one lock error, and what it sees only grows."""
    with HistoryWriter(tmp_path, seal_interval_s=0.05, commit_interval_s=0.01, grace_s=5.0) as writer:
        assert (tmp_path / "catalog.duckdb").exists()
        with subprocess.Popen(
            [sys.executable, "-c", PLAIN_READER, "catalog.duckdb"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as reader:
            batch = 0
            while reader.poll() is None:
                batch += 1
                writer.append(
                    [make.entry(make.arrived(f"{batch}"), batch), make.entry(make.finished(f"{batch}"), batch)]
                )
                time.sleep(0.005)
            said, error = reader.communicate()
        assert reader.returncode == 0, error
    times, different, last = map(int, said.split())
    assert times >= 100
    assert different > 1
    assert 0 < last <= batch


def test_an_empty_history_has_all_views_with_their_types(tmp_path: Path) -> None:
    """Before anything was recorded, queries that do arithmetic on the columns already work."""
    with HistoryWriter(tmp_path), open_history(tmp_path) as connection:
        for view in ("requests", "latency_by_minute", "calibration_by_day", "snapshots", "decisions"):
            assert connection.sql(f"SELECT * FROM {view}").fetchall() == []
        query = "SELECT avg(ttlt_s + 1), max(list_sum(table_index_s)), max(experts['a']) FROM requests, decisions, predictions"
        assert connection.sql(query).fetchall() == [(None, None, None)]


def test_a_reader_can_change_nothing(tmp_path: Path, make: Any) -> None:
    """Neither tables nor views of the history."""
    with HistoryWriter(tmp_path) as writer:
        writer.append([make.entry(make.finished("a"), 1)])
    with open_history(tmp_path) as connection:
        for statement in ("DELETE FROM sealed_batches", "DROP VIEW requests", "CREATE TABLE mine (a INTEGER)"):
            with pytest.raises(duckdb.Error, match="read-only"):
                connection.execute(statement)


def test_two_readers_in_the_writers_process_each_see_their_moment(tmp_path: Path, make: Any) -> None:
    """A later reader sees what was sealed since, though an earlier one is still open on the replaced catalog."""
    with (
        HistoryWriter(tmp_path, seal_interval_s=0.05, commit_interval_s=0.0) as writer,
        open_history(tmp_path) as early,
    ):
        writer.append([make.entry(make.finished("a"), 1)])
        deadline_s = time.monotonic() + 20.0
        while writer.stats.sealed_rows == 0 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with open_history(tmp_path) as late:
            assert late.sql("SELECT count(*) FROM completions").fetchall() == [(1,)]
        assert early.sql("SELECT count(*) FROM completions").fetchall() == [(0,)]
