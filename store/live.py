"""The live file: rows that are durable but not sealed yet, and everything the writer does on the disk."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from store.catalog import publish_catalog
from store.files import Folder, secure
from store.rows import Row
from store.schema import open_live, sealed_tables
from store.segments import Segments
from store.tables import SEALED_TABLES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one transaction writes: rows by table, in order, up to a position."""

    position: int
    rows: Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What the history keeps."""

    days: float
    bytes: int
    grace_s: float
    """A replaced or outlived segment stays on the disk so long for those who still read it."""


class LiveFile:
    """An open history, for one thread at a time."""

    def __init__(self, folder: Folder, *, writer: str, retention: Retention, now_s: float) -> None:
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
        try:
            self._segments = Segments(self._connection, folder)
            self.healed_files = self._segments.heal()
            self.position = self._claim()
            self._types = {table: self._arrow_schema(table) for table in SEALED_TABLES}
            self._tables = sealed_tables(self._connection)
            self._stale = True
            self.maintain(now_s)
        except BaseException:
            self._connection.close()
            raise

    def last_batches(self) -> dict[str, int]:
        """The last durable batch of each session."""
        return dict(self._connection.execute("SELECT session_id, batch FROM sessions").fetchall())

    def segment_count(self) -> int:
        """Segments that the catalog lists."""
        return len(self._segments.active())

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
        self.position = chunk.position
        return {name: table.num_rows for name, table in arrow.items()}

    def maintain(self, now_s: float) -> int:
        """Seal, compact, apply the retention and publish the catalog; returns how many rows were sealed.

        Files go last, when no published catalog lists them any more.
        """
        sealed = self._segments.seal(now_s)
        self._stale |= sealed > 0
        self._stale |= self._segments.compact(now_s) > 0
        retired = self._segments.retire(
            now_s, retention_days=self._retention.days, retention_bytes=self._retention.bytes
        )
        self._stale |= retired > 0
        if self._stale:
            self._forget_sessions(now_s)
            publish_catalog(self._connection, self._folder, self._tables, self._segments.active(), now_s=now_s)
            self._stale = False
            self._connection.execute("CHECKPOINT")
            secure(self._folder.live)
            secure(self._folder.live.with_name(self._folder.live.name + ".wal"))
        self._segments.remove_retired(now_s - self._retention.grace_s)
        return sealed

    def close(self) -> None:
        """Give the live file back; what is durable stays so."""
        with contextlib.suppress(duckdb.Error):
            self._connection.close()

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
        return self._connection.sql(f"SELECT * FROM {table} LIMIT 0").to_arrow_table().schema  # noqa: S608 - our own name

    def _insert(self, name: str, table: pa.Table) -> None:
        self._connection.register("incoming", table)
        self._connection.execute(f"INSERT INTO {name} SELECT * FROM incoming")  # noqa: S608 - a name of our own
        if name == "batches":
            self._connection.execute(
                "INSERT INTO sessions SELECT session_id, max(batch), max(received_s) FROM incoming GROUP BY session_id"
                " ON CONFLICT DO UPDATE SET batch = excluded.batch, received_s = excluded.received_s"
            )
        self._connection.unregister("incoming")

    def _forget_sessions(self, now_s: float) -> None:
        self._connection.execute("DELETE FROM sessions WHERE received_s < ?", [now_s - self._retention.days * 86_400.0])

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
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


def _fits(name: str, schema: pa.Schema, row: Row) -> bool:
    try:
        _columns(schema, [row])
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        log.warning("a row of %s cannot be stored and is left out: %s", name, error)
        return False
    return True
