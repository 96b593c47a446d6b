"""Segments: how rows leave the live file for immutable Parquet files, are compacted there and grow old.

A segment counts from the transaction that lists it in ``segments`` and, in the same breath, deletes its rows from the
live table (or retires the segments that it replaces).
A file that no row lists is a remnant of an interrupted attempt and is removed at the next opening.
"""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from store.errors import StoreError
from store.history.damage import Damage, checksum
from store.history.files import Folder, make_folder, publish
from store.history.retention import KEPT_TABLES, Retention, outlived, trusted_now_s
from store.history.schema import VERSION
from store.history.tables import SEALED_TABLES, parquet_rows, quoted

FAN_IN = 16
"""Number of segments of a table, hour and level that are merged into one of the next level."""

MERGED_BYTES = 256 << 20
"""No merge makes more than this, and no turn merges more: the writer commits nothing meanwhile."""

_HOUR_LEVEL = 100
_DAY_LEVEL = 200
_EARLIER = "earlier"
_TEMPORARY = ".tmp"
_COPY_OPTIONS = "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880)"


@dataclass(frozen=True, slots=True)
class Segment:
    """One listed file."""

    sequence: int
    table_name: str
    path: str
    level: int
    schema_version: int
    rows: int
    bytes: int
    first_received_s: float
    last_received_s: float

    @property
    def folder(self) -> str:
        """The hour (``20260131-07``) or day (``20260131``) under which it is filed, or ``earlier``."""
        return Path(self.path).parent.name


@dataclass(frozen=True, slots=True)
class Merge:
    """Segments of one table that become one."""

    table_name: str
    folder: str
    level: int
    sources: tuple[Segment, ...]


class Segments:
    """The sealed part of a history, through the live file's connection; used by the writer's thread alone."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Folder) -> None:
        self._connection = connection
        self._folder = folder
        (last,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM segments").fetchall()[0]
        self._sequence = int(last)
        self.damage = Damage(folder.path)
        """What is missing or not as it was written, and therefore not active."""

    def heal(self) -> None:
        """Remove files that no transaction lists.

        Raises `StoreError`, touching nothing, when the live file is new beside old segments.
        """
        listed = {path for (path,) in self._connection.execute("SELECT path FROM segments").fetchall()}
        present = {str(file.relative_to(self._folder.path)) for file in self._folder.segments.rglob("*.parquet*")}
        self._refuse_strangers(present)
        for path in present - listed:
            (self._folder.path / path).unlink()

    def active(self, cursor: duckdb.DuckDBPyConnection | None = None) -> list[Segment]:
        """Listed segments that are neither retired nor damaged, oldest first; as another cursor sees them, if given."""
        return [segment for segment in self._listed(cursor) if segment.sequence not in self.damage]

    def look(self) -> bool:
        """See which segments are gone or back; whether that changes what is active."""
        return self.damage.look(self._listed())

    def verify(self) -> bool:
        """Read all of them; whether that changes what is active."""
        self.damage.doubt(self._listed())
        return self.damage.verify(sys.maxsize)

    def _listed(self, cursor: duckdb.DuckDBPyConnection | None = None) -> list[Segment]:
        rows = (
            (cursor or self._connection)
            .execute(
                "SELECT sequence, table_name, path, level, schema_version, rows, bytes, first_received_s, last_received_s"
                " FROM segments WHERE retired_s IS NULL ORDER BY first_received_s, sequence"
            )
            .fetchall()
        )
        return [Segment(*row) for row in rows]

    def seal(self, now_s: float) -> int:
        """Move all rows of the live tables into segments; returns how many rows."""
        hour = hour_name(now_s)
        written = [self._write(table, hour, 0, table) for table in SEALED_TABLES if self._any_row(table)]
        if not written:
            return 0
        self._connection.begin()
        try:
            self._list(written)
            for segment in written:
                self._connection.execute(f"DELETE FROM {segment.table_name}")
            self._connection.commit()
        except BaseException:
            _roll_back(self._connection)
            raise
        return sum(segment.rows for segment in written)

    def adopt(self, table: str, select: str) -> int:
        """Write the rows that a query gives into segments of ``table``, one for each day; returns how many."""
        columns = ", ".join(
            name
            for (name,) in self._connection.execute(
                "SELECT column_name FROM duckdb_columns() WHERE NOT internal AND table_name = ?"
                " AND database_name = current_database() ORDER BY column_index",
                [table],
            ).fetchall()
        )
        # Only names of our own and queries of our own are put together here.
        self._connection.execute(
            f"CREATE TEMP TABLE adopted AS SELECT {columns} FROM"
            f" (SELECT * FROM {table} WHERE false UNION ALL BY NAME ({select})) ORDER BY received_s"
        )
        days = self._connection.execute("SELECT DISTINCT floor(received_s / 86400) FROM adopted ORDER BY 1").fetchall()
        written = [
            self._write(
                table,
                hour_name(86_400 * day)[:8],
                _DAY_LEVEL,
                f"(SELECT * FROM adopted WHERE floor(received_s / 86400) = {int(day)})",
            )
            for (day,) in days
        ]
        self._connection.execute("DROP TABLE adopted")
        self._list(written)
        return sum(segment.rows for segment in written)

    def compact(self, now_s: float) -> int:
        """Merge of what `merges` names as much as one turn may; returns how many segments were replaced."""
        replaced = merged_bytes = 0
        for merge in merges(self.active(), hour_name(now_s)):
            merged_bytes += sum(source.bytes for source in merge.sources)
            if replaced and merged_bytes > MERGED_BYTES:
                break
            whole = [source for source in merge.sources if self.damage.is_whole(source)]
            if len(whole) < len(merge.sources):
                continue
            sources = parquet_rows(str(self._folder.path / source.path) for source in merge.sources)
            # What lacks a column lacks it still, unless another source has it.
            version = min(source.schema_version for source in merge.sources)
            merged = self._write(merge.table_name, merge.folder, merge.level, sources, version)
            self._replace(merge.sources, merged, now_s)
            replaced += len(merge.sources)
        return replaced

    def blank(self, table: str, column: str, condition: str, now_s: float) -> int:
        """Rewrite a table's segments without a column's values in the rows of a condition; return how many rows.

        Raises `StoreError`, after all others are written, where damaged files may hold such values still.
        """
        self.verify()
        blanked = 0
        for segment in (segment for segment in self.active() if segment.table_name == table):
            source = parquet_rows([str(self._folder.path / segment.path)])
            rows = count_rows(self._connection, f"SELECT 1 FROM {source} WHERE {condition}")
            if rows:
                value = f"CASE WHEN {condition} THEN NULL ELSE {column} END"
                rest = f"(SELECT * REPLACE ({value} AS {column}) FROM {source})"
                written = self._write(table, segment.folder, segment.level, rest, segment.schema_version)
                self._replace([segment], written, now_s)
                blanked += rows
        damaged = [s.path for s in self._listed() if s.table_name == table and s.sequence in self.damage]
        kept = [path for path in damaged if (self._folder.path / path).exists()]
        if kept:
            raise StoreError(
                f"{len(kept)} damaged segments may hold it still, the first is {kept[0]}: remove these files"
            )
        return blanked

    def trusted_now_s(self, now_s: float, retention: Retention) -> float:
        """The time that the retention by age counts from."""
        mortal = (segment for segment in self._listed() if segment.table_name not in KEPT_TABLES)
        return trusted_now_s(mortal, now_s, retention.seconds)

    def retire(self, now_s: float, trusted_s: float, retention: Retention) -> int:
        """Take out of the history what is too old at a trusted time or, oldest first, too much; returns how many segments."""
        gone = outlived(self._listed(), trusted_s, retention)
        if gone:
            self._connection.execute(
                "UPDATE segments SET retired_s = ? WHERE list_contains(?, sequence)",
                [now_s, [segment.sequence for segment in gone]],
            )
        return len(gone)

    def remove_retired(self, before_s: float) -> int:
        """Delete the files of segments retired before then; returns how many."""
        rows = self._connection.execute(
            "SELECT sequence, path FROM segments WHERE retired_s < ?", [before_s]
        ).fetchall()
        for _, path in rows:
            (self._folder.path / path).unlink(missing_ok=True)
        if rows:
            self._connection.execute(
                "DELETE FROM segments WHERE list_contains(?, sequence)", [[sequence for sequence, _ in rows]]
            )
            self._remove_empty_folders({(self._folder.path / path).parent for _, path in rows})
        return len(rows)

    def _refuse_strangers(self, present: set[str]) -> None:
        if present and not self._connection.execute("SELECT 1 FROM progress").fetchall():
            raise StoreError(
                f"history {self._folder.path} has segments, but its live.duckdb is new: restore live.duckdb from a copy, "
                "or move the folder away and start a new history"
            )

    def _any_row(self, table: str) -> bool:
        return bool(self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall())

    def _write(self, table: str, folder: str, level: int, source: str, version: int = VERSION) -> Segment:
        self._sequence += 1
        place = self._folder.segments / table / folder
        make_folder(place)
        temporary = place / f"{self._sequence:012d}.parquet{_TEMPORARY}"
        self._connection.execute(f"COPY (FROM {source}) TO {quoted(str(temporary))} {_COPY_OPTIONS}")
        (rows, first_s, last_s) = self._connection.execute(
            f"SELECT count(*), min(received_s), max(received_s) FROM {parquet_rows([str(temporary)])}"
        ).fetchall()[0]
        final = place / f"{self._sequence:012d}-{checksum(temporary)}.parquet"
        publish(temporary, final)
        relative = str(final.relative_to(self._folder.path))
        return Segment(self._sequence, table, relative, level, version, rows, final.stat().st_size, first_s, last_s)

    def _list(self, written: Iterable[Segment]) -> None:
        for s in written:
            self._connection.execute(
                "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                [
                    s.sequence,
                    s.table_name,
                    s.path,
                    s.level,
                    s.schema_version,
                    s.rows,
                    s.bytes,
                    s.first_received_s,
                    s.last_received_s,
                ],
            )

    def _replace(self, sources: Sequence[Segment], merged: Segment, now_s: float) -> None:
        self._connection.begin()
        try:
            self._list([merged])
            self._connection.execute(
                "UPDATE segments SET retired_s = ? WHERE list_contains(?, sequence)",
                [now_s, [source.sequence for source in sources]],
            )
            self._connection.commit()
        except BaseException:
            _roll_back(self._connection)
            raise

    def _remove_empty_folders(self, folders: set[Path]) -> None:
        for folder in folders:
            if folder.is_dir() and not any(folder.iterdir()):
                shutil.rmtree(folder)


def hour_name(moment_s: float) -> str:
    """The UTC hour under which a segment is filed.

    >>> hour_name(0.0)
    '19700101-00'
    """
    return dt.datetime.fromtimestamp(moment_s, tz=dt.UTC).strftime("%Y%m%d-%H")


def merges(active: Sequence[Segment], hour: str) -> list[Merge]:
    """Which segments should become one, given that ``hour`` is now.

    `FAN_IN` segments of a level in the present hour become one of the next; an hour that is over becomes one segment,
    and a day that is over becomes one (of `KEPT_TABLES`, all days that are over).
    So a table never has more than a few dozen segments for today and one for each earlier day, but for those that are
    large: no merge makes more than `MERGED_BYTES`.
    """
    found: list[Merge] = []
    groups: dict[tuple[str, str, int], list[Segment]] = {}
    for segment in active:
        folder, level = _target(segment, hour)
        groups.setdefault((segment.table_name, folder, level), []).append(segment)
    for (table, folder, level), sources in groups.items():
        least = 2 if level >= _HOUR_LEVEL else FAN_IN
        parts = _parts(sources) if len(sources) >= least else []
        found.extend(Merge(table, folder, level, tuple(part)) for part in parts if len(part) >= least)
    return found


def _parts(sources: Sequence[Segment]) -> list[list[Segment]]:
    """Segments in their order, in parts that may be merged."""
    parts: list[list[Segment]] = [[]]
    room = MERGED_BYTES
    for source in sources:
        if parts[-1] and source.bytes > room:
            parts.append([])
            room = MERGED_BYTES
        parts[-1].append(source)
        room -= source.bytes
    return parts


def _target(segment: Segment, hour: str) -> tuple[str, int]:
    """Folder and level of the merge in which a segment would take part."""
    day = segment.folder[:8]
    if segment.folder == _EARLIER or day < hour[:8]:
        return (_EARLIER if segment.table_name in KEPT_TABLES else day), _DAY_LEVEL
    if segment.folder < hour:
        return segment.folder, _HOUR_LEVEL
    return segment.folder, segment.level + 1


def count_rows(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """How many rows a query of our own gives."""
    (count,) = connection.execute(f"SELECT count(*) FROM ({query})").fetchall()[0]
    return int(count)


def _roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    """End a failed transaction; a connection that the failure broke has none to end."""
    try:
        connection.rollback()
    except duckdb.Error:
        return
