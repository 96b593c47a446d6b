from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.entries import Entry
from store.errors import StoreLockedError
from store.history.reader import open_history
from store.history.schema import copy_database
from store.history.writer import HistoryWriter
from store.records import FirstToken

pytestmark = pytest.mark.slow


def writer_on(path: Path) -> HistoryWriter:
    return HistoryWriter(path, seal_interval_s=600.0, commit_interval_s=0.01).start()


def tell(writer: HistoryWriter, batch: int) -> int:
    fact = FirstToken(request_id=f"r{batch}", time_s=1.0, scheduled_s=1.0, cached_prompt_tokens=0)
    return writer.append([Entry(engine_id="e", session_id="s", batch=batch, record=fact)])


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happens()


def recorded(path: Path) -> list[str]:
    with open_history(path) as history:
        return [name for (name,) in history.execute("SELECT request_id FROM first_tokens ORDER BY batch").fetchall()]


def remove_folder(path: Path) -> None:
    shutil.rmtree(path)


def remove_live_file(path: Path) -> None:
    for file in path.glob("live.duckdb*"):
        file.unlink()


@pytest.mark.parametrize("remove", [remove_folder, remove_live_file])
@pytest.mark.parametrize("idle", [True, False])
def test_a_history_that_is_removed_while_it_is_open_is_put_back(
    tmp_path: Path, remove: Callable[[Path], None], *, idle: bool
) -> None:
    """Noticed within 5 s, also by a writer with nothing to do; what is acknowledged is in the folder, before and after."""
    path = tmp_path / "history"
    writer = writer_on(path)
    tell(writer, 1)
    assert writer.flush(10.0)
    remove(path)
    position = tell(writer, 2) if not idle else writer.stats.position
    assert within(5.0, lambda: writer.stats.replaced_s is not None)
    assert within(5.0, lambda: writer.stats.last_error is None and writer.durable_position == position)
    tell(writer, 3)
    writer.close()
    assert recorded(path) == (["r1", "r3"] if idle else ["r1", "r2", "r3"])


@pytest.mark.parametrize("copies_fail", [0, 3])
def test_a_history_that_is_removed_while_it_is_sealed_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies_fail: int
) -> None:
    """Also where a segment appears behind whoever removes it, and where the copy does not succeed at once."""
    path = tmp_path / "history"
    writer = HistoryWriter(path, seal_interval_s=0.0)
    writer.open()
    tell(writer, 1)

    def removed(temporary: Path, final: Path) -> None:
        monkeypatch.undo()
        fail_copies(monkeypatch, copies_fail)
        published = temporary.read_bytes()
        shutil.rmtree(path)
        final.parent.mkdir(parents=True)
        final.write_bytes(published)
        raise FileNotFoundError(temporary)

    monkeypatch.setattr("store.history.segments.publish", removed)
    assert not writer.turn(closing=True)
    tell(writer, 2)
    assert any(writer.turn(closing=True) for _ in range(3 + copies_fail)), writer.stats.last_error
    assert writer.durable_position == writer.stats.position
    writer._finish()
    assert recorded(path) == ["r1", "r2"]
    HistoryWriter(path).start().close()


def fail_copies(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    left = iter(range(times))

    def copy(*arguments: object) -> None:
        if next(left, None) is not None:
            raise OSError("the disk is full")
        copy_database(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("store.history.live_file.copy_database", copy)


def test_a_log_that_is_removed_from_beside_the_live_file_costs_nothing_that_was_written_after(tmp_path: Path) -> None:
    """Whoever removes the files may come to this one when it is a new one already; then the controller is killed."""
    path = tmp_path / "history"
    writer = subprocess.Popen([sys.executable, "-c", WITHOUT_LOG, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    writer.kill()
    writer.wait()
    writer.stdout.close()
    HistoryWriter(path).start().close()
    assert recorded(path) == ["r1", "r2", "r3", "r4"]


WITHOUT_LOG = """
import sys, time
from pathlib import Path
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import FirstToken

writer = HistoryWriter(Path(sys.argv[1]), seal_interval_s=600.0, commit_interval_s=0.01).start()
for batch in (1, 2, 3, 4):
    fact = FirstToken(request_id=f"r{batch}", time_s=1.0, scheduled_s=1.0, cached_prompt_tokens=0)
    writer.append([Entry(engine_id="e", session_id="s", batch=batch, record=fact)])
    assert writer.flush(10.0)
    if batch == 2:
        Path(sys.argv[1], "live.duckdb.wal").unlink()
print("written", flush=True)
time.sleep(60.0)
"""


def test_nothing_is_acknowledged_while_another_controller_has_the_folder(tmp_path: Path) -> None:
    """The folder is removed and a second controller started on it: the first waits, says so, and writes when that is gone."""
    path = tmp_path / "history"
    first = HistoryWriter(path)
    first.open()
    tell(first, 1)
    assert first.turn()
    shutil.rmtree(path)
    second = subprocess.Popen([sys.executable, "-c", SECOND, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert second.stdin is not None
    assert second.stdout is not None
    assert second.stdout.readline() == b"open\n"
    before = first.durable_position
    tell(first, 2)
    for _ in range(3):
        assert not first.turn()
        assert "is being written by process" in (first.stats.last_error or "")
    second.stdin.write(b"write\n")
    second.stdin.flush()
    assert second.stdout.readline() == b"written\n"
    assert not first.turn()
    assert first.durable_position == before
    second.kill()
    second.wait()
    second.stdin.close()
    second.stdout.close()
    assert first.turn(closing=True), first.stats.last_error
    assert first.durable_position == first.stats.position
    first._finish()
    assert recorded(path) == ["r2", "r7"]


SECOND = """
import sys
from pathlib import Path
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import FirstToken

writer = HistoryWriter(Path(sys.argv[1]), seal_interval_s=600.0, commit_interval_s=0.01).start()
print("open", flush=True)
sys.stdin.readline()
fact = FirstToken(request_id="r7", time_s=1.0, scheduled_s=1.0, cached_prompt_tokens=0)
writer.append([Entry(engine_id="e", session_id="other", batch=7, record=fact)])
assert writer.flush(10.0)
print("written", flush=True)
sys.stdin.readline()
"""
"""Another controller's writer: it opens the folder, writes when it is told to, and is killed."""


def test_a_second_writer_on_the_folder_is_refused_after_the_first_took_it_back(tmp_path: Path) -> None:
    """The lock goes with the folder, and is taken again with it."""
    path = tmp_path / "history"
    first = writer_on(path)
    shutil.rmtree(path)
    assert within(5.0, lambda: first.stats.replaced_s is not None and first.stats.last_error is None)
    with pytest.raises(StoreLockedError, match="is being written by process"):
        writer_on(path)
    first.close()
