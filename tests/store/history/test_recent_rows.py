"""The reader in the writer's process sees each durable row once, at any moment, and disturbs nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from store.errors import StoreError
from store.history.recent_rows import RecentRows
from store.history.segments import Segments
from store.history.writer import HistoryWriter

TABLES = ("arrivals", "completions", "engines")


def count(reader: RecentRows, table: str, since_s: float | None = None) -> int:
    with reader.open(TABLES, since_s) as connection:
        (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    return int(found)


@pytest.mark.slow
def test_every_committed_row_is_seen_once_while_segments_are_sealed(tmp_path: Path, make: Any) -> None:
    """Under steady writing and sealing no count is below what was durable before, and none beyond what was appended."""
    writer = HistoryWriter(tmp_path, seal_interval_s=0.05, commit_interval_s=0.01).start()
    reader = writer.reader()
    done = threading.Event()
    appended = 0

    def write() -> None:
        nonlocal appended
        for number in range(1, 301):
            appended = number
            writer.append([make.entry(make.finished(f"{number}"), number)])
            time.sleep(0.005)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    reads = 0
    while not done.is_set():
        durable = writer.durable_position
        with reader.open(("completions",)) as connection:
            rows = connection.execute("SELECT count(*), count(DISTINCT request_id) FROM completions").fetchall()
        (found, distinct) = rows[0]
        assert durable <= found == distinct <= appended
        reads += 1
    thread.join()
    assert reads > 3
    assert writer.flush(20.0)
    assert count(reader, "completions") == 300
    assert writer.stats.errors == 0
    writer.close()


def test_sealing_waits_for_who_reads(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB takes in no log beside a reader who began before a change; the writer is not to fail by that."""
    writer = HistoryWriter(tmp_path, seal_interval_s=0.0)
    writer.open()
    reads, active = threading.Event(), Segments.active

    def slowly(segments: Segments, cursor: Any = None) -> Any:
        found = active(segments, cursor)
        if cursor is not None:
            reads.set()
            time.sleep(0.5)
        return found

    monkeypatch.setattr(Segments, "active", slowly)
    reader = threading.Thread(target=lambda: count(writer.reader(), "completions"))
    reader.start()
    assert reads.wait(10.0)
    writer.append([make.entry(make.finished("r1"), 1)])
    assert writer.turn(), writer.stats.last_error
    reader.join()
    assert writer.turn(closing=True)
    writer._finish()


def test_a_bound_in_time_leaves_out_what_came_earlier_and_never_the_engines(tmp_path: Path, make: Any) -> None:
    now_s = 1000.0
    writer = HistoryWriter(tmp_path, seal_interval_s=3600.0, clock=lambda: now_s).start()
    reader = writer.reader()
    writer.append([make.entry(make.engine()), make.entry(make.finished("early"), 1)])
    assert writer.flush(20.0)
    for sealed in (False, True):
        assert count(reader, "completions", since_s=999.0) == 1
        assert count(reader, "completions", since_s=1001.0) == 0
        assert count(reader, "engines", since_s=1001.0) == 1
        assert sealed or writer.verify(20.0)
    writer.close()


def test_a_closed_history_has_no_recent_past(tmp_path: Path, make: Any) -> None:
    """The reader says so; it neither waits nor shows something old."""
    writer = HistoryWriter(tmp_path).start()
    reader = writer.reader()
    writer.append([make.entry(make.finished("a"), 1)])
    assert writer.flush(20.0)
    writer.close()
    with pytest.raises(StoreError), reader.open(TABLES):
        pass


def test_an_error_in_a_query_leaves_the_writer_and_other_readers_alone(tmp_path: Path, make: Any) -> None:
    writer = HistoryWriter(tmp_path).start()
    reader = writer.reader()
    for _ in range(5):
        with pytest.raises(StoreError, match="cannot be read"), reader.open(TABLES) as connection:
            connection.execute("SELECT nonsense FROM completions")
    writer.append([make.entry(make.finished("a"), 1)])
    assert writer.flush(20.0)
    assert count(reader, "completions") == 1
    assert writer.stats.errors == 0
    writer.close()


def test_nothing_can_be_changed_through_a_reader(tmp_path: Path, make: Any) -> None:
    writer = HistoryWriter(tmp_path).start()
    reader = writer.reader()
    writer.append([make.entry(make.finished("a"), 1)])
    assert writer.flush(20.0)
    with pytest.raises(StoreError), reader.open(TABLES) as connection:
        connection.execute("DELETE FROM completions")
    assert count(reader, "completions") == 1
    writer.close()
