"""The live file: rows that are durable but not sealed yet, and everything the writer does on the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from store.atomic_file import sync
from store.history.catalog import publish_catalog, search_in
from store.history.columns import Row
from store.history.files import Folder, secure
from store.history.recent_rows import DurableRows
from store.history.retention import KEPT_TABLES, Retention
from store.history.schema import copy_database, open_live, sealed_tables
from store.history.segments import Segments, count_rows
from store.history.tables import ROW_COLUMNS, SEALED_TABLES, quoted

log = logging.getLogger(__name__)

VERIFIED_BYTES = 64 << 20
"""Bytes of the history that are verified at each sealing, once after each start, to find damage."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one transaction writes: rows by table, in order, up to a position."""

    position: int
    rows: Mapping[str, Sequence[Row]]


class LiveRows(Protocol):
    """What the writer needs of an open history; `LiveFile` is the one that ships."""

    position: int
    """Up to where this writer's entries were durable when it was opened, or have become so since."""

    clock_ahead_s: float | None
    """By how much the clock is beyond the newest row, while the retention by age does not trust it."""

    @property
    def in_place(self) -> bool:
        """Whether what is written is still where it was opened, for the next one to find."""
        ...

    @property
    def replaceable(self) -> bool:
        """Whether closing it loses nothing that a copy in its place could keep."""
        ...

    def let_go(self, *, put_back: bool) -> None:
        """Leave the place to whatever has it now, or put a copy of this there if nothing has."""
        ...

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session."""
        ...

    def segment_count(self) -> int:
        """Segments that the catalog lists."""
        ...

    def damaged_count(self) -> int:
        """Segments that are left out because they are missing or not as they were written."""
        ...

    def verify(self) -> None:
        """Read all of the history again, to find what is damaged."""
        ...

    def commit(self, chunk: Chunk) -> dict[str, int]:
        """Write a chunk in one transaction; returns how many rows of each table were written."""
        ...

    def maintain(self, now_s: float, *, seals: bool = True) -> int:
        """Seal what is due, and look after what is sealed; returns how many rows were sealed."""
        ...

    def durable_rows(self, tables: Sequence[str], since_s: float | None) -> DurableRows:
        """The committed rows of some tables; for any thread."""
        ...

    def close(self) -> None:
        """Give it back; what is durable stays so."""
        ...


class LiveFile:
    """An open history, for one thread at a time; `durable_rows` alone is for any."""

    def __init__(self, folder: Folder, writer: str, retention: Retention, now_s: float) -> None:
        """Open, heal and seal what an earlier writer left, so that the catalog then shows all that is durable.

        Args:
            folder: where the history lies; it exists.
            writer: random name of the opening, by which a chunk is known to have been written before an error.
            retention: what to keep.
            now_s: the time in Unix seconds.

        Raises:
            StoreError: the history cannot be opened, or parts of it are missing.
            StoreSchemaError: it is of an unknown version and was left as it is.
        """
        self._folder = folder
        self._retention = retention
        self._writer = writer
        self._connection = open_live(folder.live, now_s=now_s)
        self._reading = threading.Lock()
        self.clock_ahead_s: float | None = None
        self._cursor: duckdb.DuckDBPyConnection | None = None
        try:
            self._cursor = self._connection.cursor()
            self._file = folder.live.stat()
            self._segments = Segments(self._connection, folder)
            self._segments.heal()
            self.position = self._claim()
            self._types = {table: self._arrow_schema(table) for table in SEALED_TABLES}
            self._tables = sealed_tables(self._connection)
            self._stale = True
            self._published: tuple[int, ...] | None = None
            self._views: dict[str, str] = {}
            """The text of each table's view in the catalog that this writer published last."""
            self._log: tuple[int, ...] | None = None
            self.maintain(now_s)
        except BaseException:
            self.close()
            raise

    @property
    def in_place(self) -> bool:
        """Whether the open file is still the one of its name."""
        try:
            return os.path.samestat(self._file, self._folder.live.stat())
        except OSError:
            return False

    @property
    def replaceable(self) -> bool:
        """Whether some file has its name, or none can be copied from it any more."""
        if self._folder.live.exists():
            return True
        try:
            self._connection.execute("SELECT position FROM progress")
        except duckdb.Error:
            return True
        return False

    def let_go(self, *, put_back: bool) -> None:
        """Leave the place to whatever has it now, or put a copy of the open file there, which has no name any more.

        From here on closing leaves the disk alone: DuckDB would remove the log of whatever has its name now.
        """
        if put_back and not self._folder.live.exists():
            copy_database(self._connection, self._folder.live)
        self._connection.execute("PRAGMA disable_checkpoint_on_shutdown")

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session."""
        return dict(self._connection.execute("SELECT session_id, batch FROM sessions").fetchall())

    def segment_count(self) -> int:
        """Segments that the catalog lists."""
        return len(self._segments.active())

    def damaged_count(self) -> int:
        """Segments that the catalog leaves out because they are missing or not as they were written."""
        return len(self._segments.damage)

    def verify(self) -> None:
        """Read all of the history again, to find what is damaged; the next sealing leaves it out."""
        self._stale |= self._segments.verify()

    def commit(self, chunk: Chunk) -> dict[str, int]:
        """Write a chunk in one transaction; returns how many rows of each table were written.

        A row that no column type can hold is left out and logged: nothing could ever be done with it.
        Writing the same chunk again after an error whose effect is unknown writes nothing twice.
        """
        if chunk.position <= self.position:
            return {}
        arrow = {name: _arrow(name, self._types[name], rows) for name, rows in chunk.rows.items() if rows}
        self._connection.begin()
        try:
            for name, table in arrow.items():
                self._insert(name, table)
            self._connection.execute("UPDATE progress SET position = ?", [chunk.position])
            self._connection.commit()
        except BaseException:
            self._roll_back()
            raise
        self._name_log()
        self.position = chunk.position
        return {name: table.num_rows for name, table in arrow.items()}

    def maintain(self, now_s: float, *, seals: bool = True) -> int:
        """Seal, compact, apply the retention and publish the catalog; returns how many rows were sealed.

        Where nothing ``seals``, all of this waits, unless files or the catalog have gone or come back.
        Files go last, when no published catalog lists them any more.
        """
        self._stale |= self._segments.look()
        if self._published != _identity(self._folder.catalog):
            self._stale, self._views = True, {}
        if not seals and not self._stale:
            return 0
        self._stale |= self._segments.damage.verify(VERIFIED_BYTES)
        sealed = self._segments.seal(now_s)
        self._stale |= sealed > 0
        self._stale |= self._segments.compact(now_s) > 0
        trusted_s = self._segments.trusted_now_s(now_s, self._retention)
        self.clock_ahead_s = now_s - trusted_s if trusted_s < now_s else None
        self._stale |= self._segments.retire(now_s, trusted_s, self._retention) > 0
        if self._stale:
            self._forget_sessions(trusted_s)
            active, known, self._views = self._segments.active(), self._views, {}
            self._views = publish_catalog(
                self._connection, self._folder, self._tables, active, now_s=now_s, known=known
            )
            self._published = _identity(self._folder.catalog)
            self._stale = False
            self._take_in_log()
            secure(self._folder.live)
            secure(self._log_file)
        self._segments.remove_retired(now_s - self._retention.grace_s)
        return sealed

    def adopt(self, catalogs: Mapping[str, Path], selects: Mapping[str, tuple[str, str]]) -> dict[str, tuple[int, int]]:
        """Take other histories' rows into segments, a day each, and publish them; rows taken and held, by table.

        ``catalogs`` are attached under their names; ``selects`` says for each table which rows are taken of them, and
        which they hold. The history must be new: nothing is compared with what is here.
        """
        connection = self._connection
        for name, catalog in catalogs.items():
            connection.execute(f"ATTACH {quoted(str(catalog))} AS {name} (READ_ONLY)")
        connection.execute(search_in([catalog.parent for catalog in catalogs.values()]))
        counts = {
            table: (self._segments.adopt(table, select), count_rows(connection, held))
            for table, (select, held) in selects.items()
        }
        batches = selects["batches"][0]
        connection.execute(
            f"INSERT INTO sessions SELECT session_id, max(batch), max(received_s) FROM ({batches}) GROUP BY session_id"
        )
        for name in catalogs:
            connection.execute(f"DETACH {name}")
        connection.execute("RESET file_search_path")
        self._stale = True
        self.maintain(max((s.last_received_s for s in self._segments.active()), default=0.0))
        return counts

    def durable_rows(self, tables: Sequence[str], since_s: float | None) -> DurableRows:
        """The committed rows of some tables, each once; for any thread.

        One transaction sees the live tables and the list of segments, so that a row that is being sealed is in one of
        the two. What is unsealed is copied: that is as much as came since the last sealing.
        """
        chosen = [table for table in self._tables if table.name in tables]
        oldest_s = float("-inf") if since_s is None else since_s
        cursor = self._cursor
        assert cursor is not None, "an open file has one"
        with self._reading:
            cursor.begin()
            try:
                segments = self._segments.active(cursor)
                unsealed = {
                    table.name: cursor.sql(
                        f"SELECT * FROM {table.name} WHERE received_s >= $since_s",
                        params={"since_s": float("-inf") if table.name in KEPT_TABLES else oldest_s},
                    ).to_arrow_table()
                    for table in chosen
                }
            finally:
                cursor.rollback()
        recent = [s for s in segments if s.table_name in KEPT_TABLES or s.last_received_s >= oldest_s]
        return DurableRows(root=self._folder.path, tables=chosen, unsealed=unsealed, segments=recent)

    def close(self) -> None:
        """Give the live file back, the readers' cursor too, which would keep it open; what is durable stays so."""
        with self._reading:
            for connection in (self._cursor, self._connection):
                with contextlib.suppress(Exception):
                    if connection is not None:
                        connection.close()

    def _name_log(self) -> None:
        """Make the name of DuckDB's log as durable as its contents are, once for each log that it begins.

        A log that has gone was taken over into the file, or removed by somebody: then the file must hold all by itself.
        """
        known, self._log = self._log, _identity(self._log_file)
        if known is not None and (self._log is None or known[0] != self._log[0]):
            self._take_in_log()
        if self._log is not None and (known is None or known[0] != self._log[0] or known[1] > self._log[1]):
            sync(self._folder.path)

    @property
    def _log_file(self) -> Path:
        return self._folder.live.with_name(self._folder.live.name + ".wal")

    def _take_in_log(self) -> None:
        """Have the file hold all by itself; DuckDB refuses while somebody reads."""
        with self._reading:
            self._connection.execute("CHECKPOINT")
        self._log = _identity(self._log_file)

    def _claim(self) -> int:
        """Position that this writer had reached already, before an error made it open the file again."""
        rows = self._connection.execute("SELECT position FROM progress WHERE writer = ?", [self._writer]).fetchall()
        if rows:
            return int(rows[0][0])
        self._connection.begin()
        self._connection.execute("DELETE FROM progress")
        self._connection.execute("INSERT INTO progress VALUES (?, 0)", [self._writer])
        self._connection.commit()
        return 0

    def _arrow_schema(self, table: str) -> pa.Schema:
        return (
            self._connection.sql(f"SELECT {', '.join(ROW_COLUMNS[table])} FROM {table} LIMIT 0").to_arrow_table().schema
        )

    def _insert(self, name: str, incoming: pa.Table) -> None:
        """Add rows; DuckDB reads the argument itself, for half of what it costs to register it first."""
        self._connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM incoming")
        if name == "batches":
            self._connection.execute(
                "INSERT INTO sessions SELECT session_id, max(batch), max(received_s) FROM incoming GROUP BY session_id"
                " ON CONFLICT DO UPDATE SET batch = excluded.batch, received_s = excluded.received_s"
            )

    def _forget_sessions(self, now_s: float) -> None:
        self._connection.execute("DELETE FROM sessions WHERE received_s < ?", [now_s - self._retention.seconds])

    def _roll_back(self) -> None:
        """End a failed transaction; a connection that the failure broke has none to end."""
        with contextlib.suppress(duckdb.Error):
            self._connection.rollback()


def _arrow(name: str, schema: pa.Schema, rows: Sequence[Row]) -> pa.Table:
    try:
        return _columns(schema, rows)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        sound = [row for row in rows if _fits(name, schema, row)]
        return _columns(schema, sound)


def _columns(schema: pa.Schema, rows: Sequence[Row]) -> pa.Table:
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays(
        [_column(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """One column; lists of structs from records are taken apart field by field, in a fifth of the time."""
    if pa.types.is_map(kind):
        return pa.array([None if items is None else list(items.items()) for items in values], kind)
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return pa.array(values, kind)
    lists = [items or () for items in values]
    flat = list(chain.from_iterable(lists))
    fields = [pa.array([getattr(item, field.name) for item in flat], field.type) for field in kind.value_type.fields]
    structs = pa.StructArray.from_arrays(fields, fields=list(kind.value_type.fields))
    offsets = pa.array([0, *accumulate(map(len, lists))], pa.int32())
    return pa.ListArray.from_arrays(offsets, structs, type=kind, mask=pa.array([items is None for items in values]))


def _fits(name: str, schema: pa.Schema, row: Row) -> bool:
    try:
        _columns(schema, [row])
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        log.warning("a row of %s cannot be stored and is left out: %s", name, error)
        return False
    return True


def _identity(file: Path) -> tuple[int, ...] | None:
    """Return what distinguishes a file from another of the same name; None when it does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
