"""Where a simulated controller keeps its history: in memory for most seeds, in a real folder with DuckDB for some."""

from __future__ import annotations

import errno
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import duckdb
from harness.faults import Faults
from harness.timeline import Crash

from store.entries import Outcome
from store.history.columns import columns_of
from store.history.files import Folder
from store.history.live_file import Chunk, LiveFile, LiveRows
from store.history.reader import RecordedAnswer, learning_history, next_answer, open_history
from store.history.recent_rows import DurableRows
from store.history.retention import Retention
from store.history.tables import TABLE_OF
from store.records import Arrived, Finished, FirstToken, Preempted

COLUMNS = {
    TABLE_OF[kind]: " ".join(column.name for column in columns_of(kind))
    for kind in (Arrived, FirstToken, Preempted, Finished, Outcome)
}
"""Tables that are checked, with the columns behind their common key."""

KEY = ("engine_id", "session_id", "batch", "received_s")
REMEMBERED_ANSWERS = 20_000

History = dict[str, list[dict[str, Any]]]


class Disk(Protocol):
    """What outlives the controller's process."""

    def open(self, folder: Folder, writer: str, retention: Retention, now_s: float) -> LiveRows:
        """Open the live file, as `store.history.live_file.LiveFile` does."""
        ...

    def crash(self) -> None:
        """The process that had it open is gone."""
        ...

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session, as a starting controller reads it."""
        ...

    def learning_history(self) -> list[RecordedAnswer]:
        """What a starting controller learns again."""
        ...

    def next_answer(self) -> int:
        """The number of the first answer that is not recorded."""
        ...

    def durable_batch(self, session_id: str) -> int | None:
        """The last durable batch of a session at this very moment; None where nobody can look while it is written."""
        ...

    def history(self) -> History:
        """All that is recorded."""
        ...


@dataclass(eq=False)
class MemoryDisk:
    """Rows in lists; a commit is whole or not at all, and what was committed outlives every crash."""

    faults: Faults
    tables: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)
    progress: tuple[str, int] = ("", 0)

    def open(self, folder: Folder, writer: str, retention: Retention, now_s: float) -> LiveRows:
        """Open it; whoever reached a position before an error is there again."""
        return MemoryFile(self, writer)

    def crash(self) -> None:
        """Nothing of the process is on the disk."""

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session."""
        return dict(self.sessions)

    def durable_batch(self, session_id: str) -> int:
        """The last durable batch of a session."""
        return self.sessions.get(session_id, 0)

    def learning_history(self) -> list[RecordedAnswer]:
        """The same answers in the same order as `store.history.reader.learning_history` finds."""
        models = {row[1]: row[6] for row in self.tables.get("engines", [])}
        features: dict[tuple[str, str], bytes] = {}
        for row in self.tables.get("predictions", []):
            known = features.get((row[1], row[4]), b"")
            features[row[1], row[4]] = row[7] if len(row[7]) > len(known) else known
        answers = sorted(self.tables.get("outcomes", []), key=lambda row: (row[14], row[3], row[5], row[4]))
        return [
            RecordedAnswer(
                models[row[1]],
                features[row[1], row[4]],
                row[6],
                row[7],
                row[14],
                None if row[15] is None else (row[15], row[16]),
            )
            for row in answers[-REMEMBERED_ANSWERS:]
            if (row[1], row[4]) in features and row[1] in models
        ]

    def next_answer(self) -> int:
        """The number of the first answer that is not recorded."""
        return max((row[14] + 1 for row in self.tables.get("outcomes", [])), default=0)

    def history(self) -> History:
        """All that is recorded."""
        return {
            name: [dict(zip((*KEY, *columns.split()), row, strict=True)) for row in self.tables.get(name, [])]
            for name, columns in COLUMNS.items()
        }


class MemoryFile:
    """`store.history.live_file.LiveRows` over a `MemoryDisk`, with the disk's faults."""

    def __init__(self, disk: MemoryDisk, writer: str) -> None:
        self._disk = disk
        self._writer = writer
        disk.faults.disk()
        if disk.progress[0] != writer:
            disk.progress = (writer, 0)
        self.position = disk.progress[1]
        disk.faults.disk_after()

    in_place = True
    replaceable = True
    clock_ahead_s = None

    def let_go(self, *, put_back: bool) -> None:
        """Nothing goes away here."""

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session."""
        return dict(self._disk.sessions)

    def durable_rows(self, tables: Sequence[str], since_s: float | None) -> DurableRows:
        """Nobody reads the recent past in a simulation."""
        raise NotImplementedError

    def segment_count(self) -> int:
        """There are no segments here."""
        return 0

    def damaged_count(self) -> int:
        """Nor can any be damaged."""
        return 0

    def verify(self) -> None:
        """Nothing to read again."""

    def commit(self, chunk: Chunk) -> dict[str, int]:
        """Write a chunk, unless it was written before an error."""
        if chunk.position <= self.position:
            return {}
        disk = self._disk
        disk.faults.disk()
        for name, rows in chunk.rows.items():
            disk.tables.setdefault(name, []).extend(rows)
            if name == "batches":
                for session_id, batch, _ in rows:
                    disk.sessions[session_id] = max(batch, disk.sessions.get(session_id, 0))
        disk.progress = (self._writer, chunk.position)
        disk.faults.disk_after()
        self.position = chunk.position
        return {name: len(rows) for name, rows in chunk.rows.items() if rows}

    def maintain(self, now_s: float, *, seals: bool = True) -> int:
        """Nothing to seal, and all the faults of sealing."""
        self._disk.faults.disk()
        self._disk.faults.disk_after()
        return 0

    def close(self) -> None:
        """Nothing is held."""


WATCHED = {"open", "os.rename", "os.remove", "os.chmod", "os.mkdir"}
"""Audit events of the effects that the store has on the disk besides DuckDB's own: each may fail, and be the last."""

FULL_BEYOND_BYTES = (0, 4096, 12_288, 20_000, 300_000, 600_000)
"""Offsets in a file beyond which a full disk takes nothing: DuckDB's headers, its log, its blocks, a segment."""


class RealDisk:
    """The store as it ships, in a folder; the system refuses writes beyond a size where the disk is to be full.

    A crash leaves what the process had written to its files: they are copied as they lie before DuckDB can close them.
    """

    def __init__(self, folder: Path, faults: Faults) -> None:
        self._folder = folder
        self._faults = faults
        self._chance = faults.stream("real disk")
        self._opened: _Watched | None = None
        self._kept = folder.with_name(folder.name + "-kept")
        _listen()

    def open(self, folder: Folder, writer: str, retention: Retention, now_s: float) -> LiveRows:
        """Open the live file."""
        self._opened = None
        try:
            with self.failing():
                self._opened = _Watched(self, LiveFile(folder, writer, retention, now_s))
        except Exception:
            if self._opened is not None:
                self._opened.close()
            raise
        return self._opened

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Work on the disk that may find it full, broken or read-only, or be the process's last."""
        self._effect()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self._faults.strikes("disk full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._chance.choice(FULL_BEYOND_BYTES), limit[1]))
        _at_work.append(self)
        try:
            with self._faults.within("store", "library call raises in store", duckdb.IOException):
                yield
        finally:
            _at_work.clear()
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        if self._faults.strikes("disk error after the write"):
            raise duckdb.IOException("IO Error: Could not synchronise file: Input/output error")
        self._effect()

    def audit(self, path: str) -> None:
        """Something is about to be done to a file."""
        if not path.startswith(str(self._folder)):
            return
        self._effect()
        if self._faults.strikes("disk error"):
            raise OSError(errno.EIO, "Input/output error")
        if self._faults.strikes("disk read-only"):
            raise OSError(errno.EROFS, "Read-only file system")

    def crash(self) -> None:
        """Go on with the files as they were when the process died, and let its connections go."""
        if not self._kept.exists():
            self._keep()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._kept.rename(self._folder)

    def _effect(self) -> None:
        try:
            self._faults.effect()
        except Crash:
            _at_work.clear()
            self._keep()
            raise

    def _keep(self) -> None:
        if self._folder.exists():
            shutil.copytree(self._folder, self._kept)
        else:
            self._kept.mkdir()

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session."""
        with open_history(self._folder) as connection:
            return dict(connection.execute("SELECT session_id, batch FROM sealed_batches").fetchall())

    def durable_batch(self, session_id: str) -> int | None:
        """Not to be seen while the writer has it open; `history` is checked instead when it has not."""
        return None

    def learning_history(self) -> list[RecordedAnswer]:
        """What a starting controller learns again."""
        return list(learning_history(self._folder, REMEMBERED_ANSWERS))

    def next_answer(self) -> int:
        """The number of the first answer that is not recorded."""
        return next_answer(self._folder)

    def history(self) -> History:
        """All that is sealed."""
        with open_history(self._folder) as connection:
            return {name: _rows(connection, name) for name in COLUMNS}


_at_work: list[RealDisk] = []
"""The disk on which somebody works just now."""


@cache
def _listen() -> None:
    """Hear of every file that Python touches, once for the whole process: such a hook cannot be taken back."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and _at_work:
            _at_work[0].audit(str(arguments[0]))

    sys.addaudithook(hook)


class _Watched:
    """A live file whose every work on the disk may fail."""

    def __init__(self, disk: RealDisk, file: LiveFile) -> None:
        self._disk = disk
        self.file = file

    @property
    def position(self) -> int:
        return self.file.position

    @property
    def in_place(self) -> bool:
        return self.file.in_place

    @property
    def replaceable(self) -> bool:
        return self.file.replaceable

    @property
    def clock_ahead_s(self) -> float | None:
        return self.file.clock_ahead_s

    def let_go(self, *, put_back: bool) -> None:
        self.file.let_go(put_back=put_back)

    def last_batches(self) -> dict[str, int]:
        return self.file.last_batches()

    def segment_count(self) -> int:
        return self.file.segment_count()

    def damaged_count(self) -> int:
        return self.file.damaged_count()

    def verify(self) -> None:
        self.file.verify()

    def commit(self, chunk: Chunk) -> dict[str, int]:
        with self._disk.failing():
            return self.file.commit(chunk)

    def maintain(self, now_s: float, *, seals: bool = True) -> int:
        with self._disk.failing():
            return self.file.maintain(now_s, seals=seals)

    def close(self) -> None:
        self.file.close()


def _rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    columns = (*KEY, *COLUMNS[name].split())
    found = connection.execute(f"SELECT {', '.join(columns)} FROM {name}").fetchall()
    return [dict(zip(columns, row, strict=True)) for row in found]
