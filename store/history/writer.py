"""The one writer of a history: takes entries without blocking, makes them durable on its own thread, seals them."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb

from store.entries import Entry
from store.errors import StoreError, StoreLockedError
from store.history.columns import Row
from store.history.files import Folder, WriterLock, require_spare_files
from store.history.live_file import Chunk, LiveFile, LiveRows
from store.history.recent_rows import DurableRows, RecentRows
from store.history.retention import Retention
from store.history.rows import DROPPABLE, row_of
from store.history.seal_times import SealTimes
from store.history.tables import TABLE_OF
from store.history.writer_stats import WriterStats

__all__ = ["HistoryWriter", "WriterStats"]

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds after which an idle writer sees whether its files are still in their place."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class HistoryWriter:
    """Appends entries to the history in a folder; the only one that writes there.

    Durability: entries up to `durable_position` survive kill -9 and power loss, each exactly once.
    A batch of facts is durable as a whole, and all earlier batches of its session before it, or with it.
    All entries of a batch must come in one `append`; one whose number the session has already passed is not written
    again (``duplicates``).

    Pressure: beyond half of ``queue_limit`` predictions, decisions and snapshots are dropped and counted.
    Beyond all of it facts are refused and counted, and `durable_position` stays where it was: the engine keeps what is
    not acknowledged. The next start of a writer reads what is durable and accepts the facts that the engine resends.

    Trouble (a full disk, say) is logged once, counted, and tried again and again; nothing becomes durable meanwhile.

    Args:
        path: folder of the history; made, and shut to others, if need be.
        seal_interval_s: how often rows become visible to readers; seldom while all engines are idle.
        commit_interval_s: how long entries are gathered into one transaction.
        store_prompts: keep the prompts' token ids.
        retention_days: what is older goes.
        retention_bytes: what is more than this goes, the oldest first.
        grace_s: how long a replaced segment stays on the disk for those who still read it.
        queue_limit: entries that wait at most.
        clock: Unix seconds.
        timer: seconds of a clock that never jumps.
        open_live: opens the live file; a simulation hands in its own.
    """

    def __init__(
        self,
        path: Path,
        *,
        seal_interval_s: float = 5.0,
        commit_interval_s: float = 0.5,
        store_prompts: bool = False,
        retention_days: float = 30.0,
        retention_bytes: int = 20 << 30,
        grace_s: float = 600.0,
        queue_limit: int = 200_000,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        open_live: Callable[[Folder, str, Retention, float], LiveRows] = LiveFile,
    ) -> None:
        assert queue_limit > 0, "the queue must hold something"
        self._folder = Folder(Path(path).absolute())
        self._commit_interval_s = commit_interval_s
        self._store_prompts = store_prompts
        self._retention = Retention(days=retention_days, bytes=retention_bytes, grace_s=grace_s)
        self._queue_limit = queue_limit
        self._clock = clock
        self._timer = timer
        self._open_live = open_live
        self._name = secrets.token_hex(8)
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._live: LiveRows | None = None
        self._is_open = False
        self._pending: dict[str, list[Row]] = {}
        self._pending_entries = 0
        self._chunk: Chunk | None = None
        self._chunk_entries = 0
        self._last_batches: dict[str, int] = {}
        self._position = self._durable = 0
        self._waiting_since_s = 0.0
        self._hole: int | None = None
        self._hurry = False
        self._verifying = False
        self._closing_until_s: float | None = None
        self._seals = SealTimes(seal_interval_s)
        self._pause_s = 0.0
        self._stats = WriterStats()

    # --- any thread -------------------------------------------------------------------------------

    def start(self) -> Self:
        """Open the history, heal and seal what an earlier writer left, publish the catalog, then begin to write.

        When it returns, readers of the catalog see everything that was durable before.

        Raises:
            StoreError: the folder cannot be used.
            StoreLockedError: another writer has it.
            StoreSchemaError: it is of a version that this release does not know; it is left as it is.
        """
        self.open()
        self._thread = threading.Thread(target=self._run, name="history-writer", daemon=True)
        self._thread.start()
        return self

    def open(self) -> None:
        """All of `start` but the thread, for whoever calls `turn` in its place."""
        assert not self._is_open, "a writer starts once"
        self._folder.create()
        try:
            self._lock = WriterLock(self._folder)
            try:
                self._live = self._open()
            except BaseException:
                self._lock.release()
                raise
        except (duckdb.Error, OSError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise StoreError(
                f"history {self._folder.path} cannot be opened: {reason}: see that its disk has room and can be "
                "written, or choose another folder with --store"
            ) from error
        self._last_batches = self._live.last_batches()
        self._stats = replace(
            self._stats,
            segments=self._live.segment_count(),
            damaged_segments=self._live.damaged_count(),
            clock_ahead_s=self._live.clock_ahead_s,
        )
        self._seals.maintained(self._timer())
        self._is_open = True

    def append(self, entries: Sequence[Entry]) -> int:
        """Take entries in and return their position at once; they are durable when `durable_position` reaches it."""
        received_s = self._clock()
        rows = [row_of(entry, received_s, store_prompts=self._store_prompts) for entry in entries]
        with self._condition:
            if not self._is_open or self._closing_until_s is not None:
                raise StoreError(f"history {self._folder.path} is closed: nothing can be appended")
            idle = self._position == self._durable
            self._accept(entries, rows, received_s)
            if idle:  # Otherwise it writes or gathers: waking it for every message costs more than writing.
                self._waiting_since_s = received_s
                self._condition.notify_all()
            return self._position

    @property
    def durable_position(self) -> int:
        """Everything up to this position is durable."""
        with self._condition:
            return self._durable if self._hole is None else min(self._durable, self._hole)

    @property
    def last_batches(self) -> dict[str, int]:
        """The last batch of each session that is durable or on its way."""
        with self._condition:
            return dict(self._last_batches)

    @property
    def stats(self) -> WriterStats:
        """What the writer did so far."""
        with self._condition:
            return replace(
                self._stats,
                queued=self._queued(),
                waiting_since_s=self._waiting_since_s if self._position > self._durable else None,
                position=self._position,
                durable_position=self._durable if self._hole is None else min(self._durable, self._hole),
            )

    def reader(self) -> RecentRows:
        """Reads what this writer has made durable, sealed or not, from other threads."""
        return RecentRows(self._durable_rows)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything appended so far is durable; False when that took too long."""
        with self._condition:
            target = self._position
            self._hurry = True
            self._condition.notify_all()
            return self._condition.wait_for(lambda: self._durable >= target, timeout_s)

    def verify(self, timeout_s: float) -> bool:
        """Read all of the history again and leave out what is damaged, as when a reader has failed; False if that took longer."""
        with self._condition:
            self._verifying = True
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._verifying, timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Make everything durable, seal it and give the history back; gives up after the time, saying what was lost."""
        if self._thread is None:
            return
        with self._condition:
            if self._closing_until_s is None:
                self._closing_until_s = self._timer() + timeout_s
            self._condition.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _durable_rows(self, tables: Sequence[str], since_s: float | None) -> DurableRows:
        with self._condition:
            live, trouble = self._live, self._stats.last_error
        if live is None or trouble is not None:
            raise StoreError(
                f"the recent past is unknown while history {self._folder.path} cannot be written: "
                f"{trouble or 'it is closed'}: make room, or see what is wrong with the disk"
            )
        return live.durable_rows(tables, since_s)

    # --- under the condition ----------------------------------------------------------------------

    def _accept(self, entries: Sequence[Entry], rows: Sequence[Row], received_s: float) -> None:
        facts = sum(entry.batch is not None for entry in entries)
        room = self._queue_limit - self._queued() >= facts
        batches: dict[tuple[str, int], None] = {}
        counts = {"dropped": 0, "refused": 0, "duplicates": 0}
        for entry, row in zip(entries, rows, strict=True):
            lost = self._why_not(entry, room=room)
            if lost is not None:
                counts[lost] += 1
                continue
            self._seals.take(entry, self._position + len(entries))
            self._queue(TABLE_OF[type(entry.record)], row)
            if entry.batch is not None:
                batches[entry.session_id, entry.batch] = None
        for session_id, batch in batches:
            self._pending.setdefault("batches", []).append((session_id, batch, received_s))
            self._last_batches[session_id] = max(batch, self._last_batches.get(session_id, batch))
        if counts["refused"] and self._hole is None:
            self._hole = self._position
            log.error("the history's queue is full: facts are refused, and none is acknowledged until the next start")
        self._position += len(entries)
        self._count(**counts)

    def _why_not(self, entry: Entry, *, room: bool) -> str | None:
        """The counter of an entry that is not taken in; None for one that is."""
        if entry.batch is not None:
            if entry.batch <= self._last_batches.get(entry.session_id, -1):
                return "duplicates"
            return "refused" if self._hole is not None or not room else None
        limit = self._queue_limit // 2 if isinstance(entry.record, DROPPABLE) else self._queue_limit
        return "dropped" if self._queued() >= limit else None

    def _queue(self, table: str, row: Row) -> None:
        self._pending.setdefault(table, []).append(row)
        self._pending_entries += 1

    def _queued(self) -> int:
        return self._pending_entries + self._chunk_entries

    def _count(self, **counts: int) -> None:
        if any(counts.values()):
            stats = self._stats
            self._stats = replace(stats, **{name: getattr(stats, name) + more for name, more in counts.items()})

    # --- the writer's thread ----------------------------------------------------------------------

    def turn(self, *, closing: bool = False) -> bool:
        """Write what is pending and maintain what is due; False after trouble, when it waits for `pause_s` to try again."""
        try:
            require_spare_files()
            self._keep_in_place()
            self._write()
            self._maintain(now=closing)
            self._recovered()
        except Exception as error:  # noqa: BLE001 - nothing may end the one thread that makes facts durable
            self._failed(error)
            return False
        return True

    @property
    def pause_s(self) -> float:
        """How long to wait before the next turn because the last one failed; 0 when it did not."""
        return self._pause_s

    def _run(self) -> None:
        while True:
            closing = self._wait()
            written = self.turn(closing=closing)
            if closing and (written or self._out_of_time()):
                break
        self._finish()

    def _wait(self) -> bool:
        """Sleep until there is something to do and enough of it; True when the writer is being closed."""
        with self._condition:
            if self._pause_s > 0.0:
                self._condition.wait_for(self._closing, self._pause_s)
            else:
                self._condition.wait_for(self._busy, max(0.0, min(LOOK_S, self._seals.next_s - self._timer())))
                self._condition.wait_for(self._urgent, self._commit_interval_s)
            self._hurry = False
            return self._closing()

    def _closing(self) -> bool:
        return self._closing_until_s is not None

    def _busy(self) -> bool:
        return self._position > self._durable or self._verifying or self._closing()

    def _urgent(self) -> bool:
        return self._hurry or self._verifying or self._closing() or self._position == self._durable

    def _out_of_time(self) -> bool:
        return self._closing_until_s is not None and self._timer() >= self._closing_until_s

    def _write(self) -> None:
        """Commit what is pending; the chunk of a failed attempt comes first, unchanged.

        What comes in meanwhile waits for the next turn: else a writer under steady load would never get to sealing.
        """
        with self._condition:
            until = self._position
        while self._durable < until:
            with self._condition:
                if self._chunk is None:
                    self._chunk = Chunk(self._position, self._pending)
                    self._chunk_entries, self._pending_entries, self._pending = self._pending_entries, 0, {}
                chunk = self._chunk
            began_s = self._timer()
            written = self._opened().commit(chunk)
            self._keep_in_place()
            self._committed(chunk, written, self._timer() - began_s)

    def _committed(self, chunk: Chunk, written: Mapping[str, int], commit_s: float) -> None:
        with self._condition:
            stats = self._stats
            rejected = sum(len(rows) - written[table] for table, rows in chunk.rows.items() if table in written)
            rows = dict(stats.rows)
            for table, more in written.items():
                rows[table] = rows.get(table, 0) + more
            self._stats = replace(
                stats,
                rows=rows,
                rejected=stats.rejected + rejected,
                commits=stats.commits + 1,
                last_commit_s=self._clock(),
                commit_s=commit_s,
            )
            self._durable = chunk.position
            self._waiting_since_s = self._clock()
            self._chunk, self._chunk_entries = None, 0
            self._condition.notify_all()

    def _maintain(self, *, now: bool) -> None:
        began_s = self._timer()
        now |= self._verifying or self._live is None
        if not now and began_s < self._seals.next_s:
            return
        live = self._opened()
        if self._verifying:
            live.verify()
        seals, durable = now or self._seals.is_due(began_s), self._durable
        sealed = live.maintain(self._clock(), seals=seals)
        self._seals.maintained(self._timer(), until=durable if seals else None)
        segments, damaged = live.segment_count(), live.damaged_count()
        with self._condition:
            self._verifying = False
            self._condition.notify_all()
            self._stats = replace(
                self._stats,
                seals=self._stats.seals + 1,
                last_seal_s=self._clock(),
                seal_s=self._timer() - began_s,
                sealed_rows=self._stats.sealed_rows + sealed,
                segments=segments,
                damaged_segments=damaged,
                clock_ahead_s=live.clock_ahead_s,
            )

    def _keep_in_place(self) -> None:
        """See that lock and live file are still those of the folder: what is written elsewhere is lost and not durable."""
        live = self._live
        if self._lock.in_place and (live is None or live.in_place):
            return
        self._folder.create()
        moved = live is not None and not live.in_place
        try:
            self._lock = self._lock.renewed(self._folder)
            if live is not None and moved:
                live.let_go(put_back=True)
        except StoreLockedError:  # Another writer's files are left alone.
            if live is not None:
                live.let_go(put_back=False)
            raise
        finally:  # Whoever reads it may rely on the lock, or on the error that follows.
            with self._condition:
                self._stats = replace(self._stats, replaced_s=self._clock())
        if moved:  # The present file is opened before the next attempt.
            raise StoreError("its files were removed or replaced while it was open")

    def _open(self) -> LiveRows:
        return self._open_live(self._folder, self._name, self._retention, self._clock())

    def _opened(self) -> LiveRows:
        if self._live is None:
            self._live = self._open()
        return self._live

    def _failed(self, error: BaseException) -> None:
        """An error may have broken the connection: the file is opened again before the next attempt."""
        self._reopen()
        text = (str(error) or type(error).__name__).splitlines()[0]
        with self._condition:
            if self._stats.last_error is None:
                log.error("history %s cannot be written, trying on: %s", self._folder.path, text)
            self._stats = replace(self._stats, errors=self._stats.errors + 1, last_error=text)
            self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2.0 * self._pause_s))
            if self._closing():
                self._condition.wait(min(self._pause_s, _FIRST_PAUSE_S))

    def _reopen(self) -> None:
        """Close the file, unless it was removed and its copy is not in its place yet: it is all that knows the segments."""
        live = self._live
        if live is None:
            return
        if not live.in_place:
            with contextlib.suppress(Exception):
                self._keep_in_place()
        if live.replaceable:
            self._live = None
            with contextlib.suppress(Exception):
                live.close()

    def _recovered(self) -> None:
        if self._live is None:
            return
        with self._condition:
            if self._stats.last_error is not None:
                log.warning("history %s is written again", self._folder.path)
            self._stats = replace(self._stats, last_error=None)
            self._pause_s = 0.0

    def _finish(self) -> None:
        if self._live is not None:
            self._live.close()
        self._lock.release()
        if self._queued():
            log.error("history %s is closed with %d entries lost", self._folder.path, self._queued())
