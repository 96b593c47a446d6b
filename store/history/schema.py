"""Versions of the live file's schema: ordered migrations, each recorded when it has run.

A history of a version that this release does not know is refused and left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from store.errors import StoreError, StoreSchemaError
from store.history.files import publish
from store.history.tables import SEALED_TABLES, TABLES, quoted, statements

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, applied_s DOUBLE NOT NULL)",
        *(statement for table in TABLES for statement in statements(table)),
    ),
)
"""``MIGRATIONS[n]`` leads from version n to n + 1; entries are appended.

The first creates all columns that this release records. A release that records a new field appends
``ALTER TABLE ... ADD COLUMN IF NOT EXISTS`` and its comment for the histories of earlier releases.
"""

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


def schema_version() -> int:
    """The version that this release writes."""
    return len(MIGRATIONS)


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


def migrate(connection: duckdb.DuckDBPyConnection, *, now_s: float) -> int:
    """Run the migrations that the file lacks, each in a transaction; returns how many."""
    version = _version(connection)
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.begin()
        try:
            for statement in migration:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (?, ?)", [number, now_s])
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
    return len(MIGRATIONS) - version


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
    if version > schema_version():
        raise StoreSchemaError(
            f"history {path.parent} has schema version {version}, this release knows {schema_version()}: "
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
