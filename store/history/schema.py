"""The live file's schema: its version, and the tables and columns that an earlier release did not write.

A history of a version that this release does not know is refused and left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from store.errors import StoreError, StoreSchemaError
from store.history.columns import columns_of
from store.history.files import publish
from store.history.tables import KEY_NAMES, SEALED_TABLES, TABLE_NAMES, TABLE_OF, TABLES, quoted, statements

VERSION = 5
"""What this release writes; 1 to 4 were written before there was a release, and a history of a higher one is refused.

A new field needs no new version, for its column is added at the next opening: `_complete`. The version rises when columns
that there are change their meaning or type, with the statements that change them in `migrate`.
"""

BEFORE = 0
"""Version of segments that lack columns which the live file has."""

_VERSIONS = "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, applied_s DOUBLE NOT NULL)"

_CHECKPOINT_RELEASED: dict[str, str | bool | int | float | list[str]] = {
    "wal_autocheckpoint": "64MB",
    "threads": "1",
    "memory_limit": "1GB",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the live file has it."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the live file has it."""

    name: str
    comment: str
    columns: tuple[Column, ...]


def open_live(path: Path, *, now_s: float) -> duckdb.DuckDBPyConnection:
    """Open or create the live file and bring it to this release's version.

    Raises `StoreSchemaError`, having changed nothing, when the file is of an unknown version.
    """
    if path.exists():
        _refuse_unknown(path)
    else:
        _create(path, now_s=now_s)
    connection = _connect(path, read_only=False)
    try:
        migrate(connection, now_s=now_s)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, *, now_s: float) -> None:
    """Let a new file appear whole or not at all: what a full disk leaves half-made could never be opened again."""
    growing = path.with_name(f"{path.name}.new")
    for remnant in (growing, growing.with_name(f"{growing.name}.wal")):
        remnant.unlink(missing_ok=True)
    with _connect(growing, read_only=False) as connection:
        migrate(connection, now_s=now_s)
        connection.execute("CHECKPOINT")
    publish(growing, path)


def copy_database(connection: duckdb.DuckDBPyConnection, path: Path, source: str | None = None) -> None:
    """Put a copy of a connection's database, or of another one that it has attached, at a path, whole or not at all."""
    growing = path.with_name(f"{path.name}.new")
    for remnant in (growing, growing.with_name(f"{growing.name}.wal")):
        remnant.unlink(missing_ok=True)
    if source is None:
        (source,) = connection.execute("SELECT current_database()").fetchall()[0]
    connection.execute(f"ATTACH {quoted(str(growing))} AS copied")
    connection.execute(f'COPY FROM DATABASE "{source}" TO copied')
    connection.execute("DETACH copied")
    publish(growing, path)


def migrate(connection: duckdb.DuckDBPyConnection, *, now_s: float) -> None:
    """Bring the file to this release's tables and columns, in one transaction."""
    version = _version(connection)
    connection.begin()
    try:
        if version == 0:
            connection.execute(_VERSIONS)
        _complete(connection)
        if version < VERSION:
            connection.execute("INSERT INTO schema_version VALUES (?, ?)", [VERSION, now_s])
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _complete(connection: duckdb.DuckDBPyConnection) -> None:
    """Add what the file lacks of this release's tables and columns; what it has beyond them stays and may be NULL."""
    found: dict[str, dict[str, bool]] = {}
    for table, column, nullable in connection.execute(
        "SELECT table_name, column_name, is_nullable FROM duckdb_columns()"
        " WHERE NOT internal AND database_name = current_database()"
    ).fetchall():
        found.setdefault(table, {})[column] = nullable
    for name, text in zip(TABLE_NAMES, TABLES, strict=True):
        if name not in found:
            for statement in statements(text):
                connection.execute(statement)
    lacking = [
        (name, column)
        for kind, name in TABLE_OF.items()
        for column in columns_of(kind)
        if name in found and column.name not in found[name]
    ]
    for name, column in lacking:
        connection.execute(f"ALTER TABLE {name} ADD COLUMN {column.name} {column.type}")
        connection.execute(f"COMMENT ON COLUMN {name}.{column.name} IS {quoted(column.comment)}")
    if lacking:
        connection.execute("UPDATE segments SET schema_version = ?", [BEFORE])
    for kind, name in TABLE_OF.items():
        required = {*KEY_NAMES, *(column.name for column in columns_of(kind) if not column.optional)}
        for column, nullable in found.get(name, {}).items():
            if not nullable and column not in required:
                connection.execute(f"ALTER TABLE {name} ALTER COLUMN {column} DROP NOT NULL")


def sealed_tables(connection: duckdb.DuckDBPyConnection) -> list[Table]:
    """The tables whose rows move into segments, as the live file has them, with their comments."""
    comments = dict(connection.execute("SELECT table_name, comment FROM duckdb_tables()").fetchall())
    columns: dict[str, list[Column]] = {name: [] for name in comments}
    for table, *column in connection.execute(
        "SELECT table_name, column_name, data_type, coalesce(comment, '') FROM duckdb_columns()"
        " WHERE NOT internal ORDER BY table_name, column_index"
    ).fetchall():
        columns[table].append(Column(*column))
    return [Table(name, comments[name] or "", tuple(columns[name])) for name in SEALED_TABLES]


def _refuse_unknown(path: Path) -> None:
    """Look before opening for writing, which alone would already change the file."""
    with _connect(path, read_only=True) as connection:
        version = _version(connection)
    if version > VERSION:
        raise StoreSchemaError(
            f"history {path.parent} has schema version {version}, this release knows {VERSION}: "
            "run the release that wrote it or a newer one, or choose another folder with --store"
        )


def _version(connection: duckdb.DuckDBPyConnection) -> int:
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise StoreSchemaError(
            "the folder's live.duckdb is a database of something else, without a schema_version table: "
            "choose another folder with --store"
        )
    (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchall()[0]
    return int(version or 0)


def _connect(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(path, read_only=read_only, config={} if read_only else _CHECKPOINT_RELEASED)
    except duckdb.Error as error:
        raise StoreError(
            f"history file {path} cannot be opened: {str(error).splitlines()[0]}: "
            "close what else has it open, restore it from a copy, or choose another folder with --store"
        ) from error
