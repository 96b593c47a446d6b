from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from store.errors import StoreError, StoreLockedError
from store.history.reader import RecordedAnswer, learning_history, open_history
from store.history.writer import HistoryWriter
from store.records import Snapshot


def snapshot(time_s: float) -> Snapshot:
    return Snapshot(
        time_s=time_s,
        waiting=0,
        running=0,
        kv_blocks_used=0,
        kv_blocks=1,
        mode="on",
        steps=1,
        step_s=0.1,
        prefill_tokens=0,
        decode_tokens=0,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
    )


def count(path: Path, table: str) -> int:
    with open_history(path) as connection:
        return int(connection.sql(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def last_batches(path: Path) -> dict[str, int]:
    with open_history(path) as connection:
        return dict(connection.execute("SELECT session_id, batch FROM sealed_batches").fetchall())


@pytest.mark.slow
def test_a_batch_told_twice_is_written_once(tmp_path: Path, make: Any) -> None:
    """Facts of a batch that the session has passed are counted and not written, also after the writer came back."""
    for _ in range(2):
        with HistoryWriter(tmp_path) as writer:
            for batch in (1, 2):
                writer.append([make.entry(make.arrived(f"{batch}-{n}"), batch) for n in range(3)])
            assert writer.flush(10.0)
            again = writer.append([make.entry(make.arrived(f"2-{n}"), 2) for n in range(3)])
            assert writer.flush(10.0)
            assert writer.durable_position == again
    assert writer.stats.duplicates == 9
    assert count(tmp_path, "arrivals") == 6
    assert last_batches(tmp_path) == {"s1": 2}
    with HistoryWriter(tmp_path) as writer:
        assert writer.last_batches == {"s1": 2}


@pytest.mark.slow
def test_under_pressure_facts_outlast_the_rest_and_are_never_acknowledged_when_lost(tmp_path: Path, make: Any) -> None:
    """Half a full queue drops snapshots; a full one refuses facts, and then nothing is acknowledged any more.

    A new writer takes what was refused when it is told again.
    """
    with HistoryWriter(tmp_path, commit_interval_s=60.0, queue_limit=10) as writer:
        writer.append([make.entry(snapshot(float(n))) for n in range(8)])
        assert writer.stats.dropped == 3
        taken = writer.append([make.entry(make.finished(f"{n}"), 1) for n in range(5)])
        refused = writer.append([make.entry(make.finished("6"), 2), make.entry(make.finished("7"), 2)])
        assert writer.stats.refused == 2
        assert writer.flush(10.0)
        assert writer.durable_position == taken
        later = writer.append([make.entry(make.finished("8"), 3)])
        assert writer.flush(10.0)
        assert taken == writer.durable_position < refused < later
    assert last_batches(tmp_path) == {"s1": 1}
    with HistoryWriter(tmp_path) as writer:
        writer.append([make.entry(make.finished("6"), 2), make.entry(make.finished("7"), 2)])
    assert count(tmp_path, "completions") == 7


def test_positions_become_durable_in_order_from_many_threads(tmp_path: Path, make: Any) -> None:
    """Appending never waits for the disk, positions count entries, and everything appended ends up in the catalog."""
    with HistoryWriter(tmp_path, seal_interval_s=0.1, commit_interval_s=0.01) as writer:
        longest_s = []

        def work(name: str) -> None:
            for batch in range(50):
                began_s = time.monotonic()
                writer.append([make.entry(make.arrived(f"{name}-{batch}"), batch, name)])
                longest_s.append(time.monotonic() - began_s)
                time.sleep(0.002)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        seen = []
        while any(thread.is_alive() for thread in threads):
            seen.append(writer.durable_position)
            time.sleep(0.01)
        assert writer.flush(10.0)
        assert writer.durable_position == writer.stats.position == 200
        assert seen == sorted(seen)
    assert count(tmp_path, "arrivals") == count(tmp_path, "batches") == 200
    assert last_batches(tmp_path) == dict.fromkeys("abcd", 49)
    assert sorted(longest_s)[len(longest_s) // 2] < 0.01
    with pytest.raises(StoreError, match="closed"):
        writer.append([])


@pytest.mark.slow
def test_since_when_entries_wait_for_the_disk_is_known(tmp_path: Path, make: Any) -> None:
    """From the last commit on, or from their arrival where all before them was durable."""
    now_s = 100.0
    writer = HistoryWriter(tmp_path / "h", clock=lambda: now_s, timer=lambda: now_s)
    writer.open()
    assert writer.stats.waiting_since_s is None
    writer.append([make.entry(snapshot(1.0))])
    now_s = 103.0
    writer.append([make.entry(snapshot(2.0))])
    assert writer.stats.waiting_since_s == 100.0
    assert writer.turn()
    assert writer.stats.waiting_since_s is None
    now_s = 200.0
    writer.append([make.entry(snapshot(3.0))])
    assert writer.stats.waiting_since_s == 200.0
    writer.close()


def test_a_second_writer_is_sent_away(tmp_path: Path) -> None:
    """Whether in this process or another; the message names the holder, and the first writer does not notice."""
    with HistoryWriter(tmp_path):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()}.*--store"):
            HistoryWriter(tmp_path).start()
        program = f"from pathlib import Path; from store.history.writer import HistoryWriter; HistoryWriter(Path({str(tmp_path)!r})).start()"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert f"StoreLockedError: history {tmp_path} is being written by process {os.getpid()}" in other.stderr
    with HistoryWriter(tmp_path):
        pass


def test_only_the_owner_can_read_a_history(tmp_path: Path, make: Any) -> None:
    """Folders are 0700 and files 0600, whatever the umask."""
    path = tmp_path / "a" / "history"
    with HistoryWriter(path) as writer:
        writer.append([make.entry(make.arrived("a"), 1)])
    parts = [path.parent, path, *path.rglob("*")]
    assert {p.stat().st_mode & 0o777 for p in parts if p.is_dir()} == {0o700}
    assert {p.stat().st_mode & 0o777 for p in parts if p.is_file()} == {0o600}


def test_a_folder_that_cannot_be_a_history_is_refused(tmp_path: Path) -> None:
    """A file, a folder that everybody writes to, a path that DuckDB reads otherwise, and no history at all say what to do."""
    occupied = tmp_path / "file"
    occupied.write_text("x")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for path in (occupied, shared, tmp_path / "what?", tmp_path / "back\\slash"):
        with pytest.raises(StoreError, match="--store"):
            HistoryWriter(path).start()
    with pytest.raises(StoreError, match=r"has a \? in its path, where DuckDB finds no file"):
        HistoryWriter(tmp_path / "what?" / "history").start()
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match="holds no history"):
            open_history(path)


def test_the_learner_finds_the_past_in_order(tmp_path: Path, make: Any) -> None:
    """The latest answers in the order of teaching, each with what was known when it was first predicted."""
    with HistoryWriter(tmp_path) as writer:
        writer.append(
            [make.entry(make.engine("s1", "m1"), None, "s1"), make.entry(make.engine("s2", "m2"), None, "s2")]
        )
        for n in range(10):
            session_id = f"s{1 + n % 2}"
            writer.append(
                [
                    make.entry(make.prediction(f"r{n}"), None, session_id),
                    make.entry(
                        make.outcome(f"r{n}", 200.0 - n, output_tokens=n, answer=(7 * n) % 10), None, session_id
                    ),
                ]
            )
    assert list(learning_history(tmp_path, 3)) == [
        RecordedAnswer("m2", b"r1", 1, censored=False, answer=7),
        RecordedAnswer("m1", b"r4", 4, censored=False, answer=8),
        RecordedAnswer("m2", b"r7", 7, censored=False, answer=9),
    ]
    assert len(list(learning_history(tmp_path, 100))) == 10


FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
from store.entries import Entry
from store.records import FirstToken
from store.history.writer import HistoryWriter
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
path = Path(sys.argv[1])
def batch(number):
    facts = [FirstToken(request_id=f"{number}-{n}", time_s=1.0, scheduled_s=1.0, cached_prompt_tokens=0) for n in range(50)]
    return [Entry(engine_id="e", session_id="s", batch=number, record=fact) for fact in facts]
with HistoryWriter(path, seal_interval_s=0.2, commit_interval_s=0.01) as writer:
    first = writer.append(batch(1))
    assert writer.flush(20.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    for number in range(2, 20):
        last = writer.append(batch(number))
    assert not writer.flush(1.5)
    stats = writer.stats
    assert stats.errors > 0 and stats.last_error, stats
    assert first <= writer.durable_position < last, stats
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.flush(20.0)
    assert writer.durable_position == last
print("HEALED")
"""


@pytest.mark.slow
def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    """Nothing is acknowledged while files cannot grow, it is logged once, and afterwards all is there exactly once."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "HEALED" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("cannot be written, trying on") == 1
    with open_history(tmp_path) as connection:
        rows = connection.sql("SELECT count(*), count(DISTINCT request_id), max(batch) FROM first_tokens").fetchall()
    assert rows == [(950, 950, 19)]


@pytest.mark.slow
def test_nothing_is_written_while_few_files_can_be_opened(tmp_path: Path) -> None:
    """DuckDB ends the whole process if it runs out of them on the way: nothing is begun, and all is kept until there are."""
    ran = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(tmp_path)], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert (ran.returncode, ran.stdout.splitlines()) == (0, ["False 1", "False 1", "True 2"]), ran.stderr


FEW_FILES = """
import os, resource, sys
from pathlib import Path
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import Arrived

def turn(batch):
    arrived = Arrived(request_id=f"r{batch}", arrival_s=1e9, prompt_tokens=4, token_ids=b"", max_tokens=5, temperature=1.0)
    writer.append([Entry(engine_id="e", session_id="s", batch=batch, record=arrived)] if batch else [])
    return f"{writer.turn()} {writer.durable_position}"

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
writer = HistoryWriter(Path(sys.argv[1]), retention_days=1e5)
writer.open()
turn(1)
held = []

def leave(files):
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for _ in range(files):
            os.close(held.pop())

leave(39)
print(turn(2))
leave(39)
print(turn(None))
leave(40)
print(turn(None), flush=True)
os._exit(0)
"""
