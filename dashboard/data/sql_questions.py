"""SQL statements over the history, run in a sandbox; failures are returned as values, never raised."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
from pyarrow import csv, parquet

from store.errors import BadInputError, SageError
from store.history.reader import open_history
from store.reading.plain_values import plain
from store.reading.sandbox import TRUNCATED, run_sql
from store.reading.spreadsheet import for_spreadsheets

ROW_LIMIT = 10_000
"""Rows of an answer that are fetched, shown and downloaded."""
TIMEOUT_S = 30.0
RESULT_BYTES = 64 << 20
"""Size of an answer at most: each open page keeps its latest one."""
STATEMENTS_AT_ONCE = 2
"""Statements that run at the same time, of all who use this dashboard: each may take 1 GiB of memory."""

_free = threading.BoundedSemaphore(STATEMENTS_AT_ONCE)


@dataclass(frozen=True)
class QuestionTrouble:
    """Why there is no answer."""

    kind: Literal["statement", "history"]
    """``statement``: it is not allowed, wrong, or asks too much; ``history``: there is none."""
    detail: str


@dataclass(frozen=True)
class Answer:
    """The rows of an answer."""

    rows: pa.Table
    truncated: bool
    """Whether there are more rows than `ROW_LIMIT`."""

    def shown(self) -> pa.Table:
        """The rows in types that every browser and every spreadsheet knows: nested values and bytes become text."""
        columns = [_plain(column) for column in plain(self.rows).columns]
        return pa.table(columns, names=self.rows.column_names)

    def as_csv(self) -> bytes:
        """The rows as CSV, nested values as text, with no text that a spreadsheet takes for a formula."""
        sink = pa.BufferOutputStream()
        csv.write_csv(for_spreadsheets(self.shown()), sink)
        return bytes(sink.getvalue().to_pybytes())

    def as_parquet(self) -> bytes:
        """The rows as Parquet, every value in its own type where Parquet has it."""
        sink = pa.BufferOutputStream()
        try:
            parquet.write_table(self.rows, sink)
        except pa.ArrowException:
            sink = pa.BufferOutputStream()
            parquet.write_table(self.shown(), sink)
        return bytes(sink.getvalue().to_pybytes())


def ask(path: Path, statement: str) -> Answer | QuestionTrouble:
    """Run one statement in a process of its own that can do nothing but read this history."""
    if not statement.strip():
        return QuestionTrouble("statement", "there is no statement: write one, or choose a saved query")
    if not _free.acquire(timeout=TIMEOUT_S):
        return QuestionTrouble("statement", f"{STATEMENTS_AT_ONCE} other statements have run for long: ask again later")
    try:
        rows = run_sql(path, statement, row_limit=ROW_LIMIT, timeout_s=TIMEOUT_S, result_bytes=RESULT_BYTES)
    except BadInputError as error:
        return QuestionTrouble("statement", str(error))
    except SageError as error:
        return QuestionTrouble("history", str(error))
    finally:
        _free.release()
    return Answer(rows, truncated=(rows.schema.metadata or {}).get(TRUNCATED) == b"true")


@dataclass(frozen=True)
class ViewColumns:
    """One view of the history: what it holds, and its columns as name, type and meaning."""

    name: str
    comment: str
    columns: tuple[tuple[str, str, str], ...]


def read_schema(path: Path) -> tuple[ViewColumns, ...] | QuestionTrouble:
    """Every view of the history with its columns and their comments."""
    try:
        with open_history(path) as connection:
            views = connection.execute(_VIEWS).fetchall()
            columns = connection.execute(_COLUMNS).fetchall()
    except (SageError, duckdb.Error) as error:
        return QuestionTrouble("history", str(error).splitlines()[0])
    return tuple(
        ViewColumns(name, comment, tuple((column, kind, text) for view, column, kind, text in columns if view == name))
        for name, comment in views
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.float64(), safe=False) if pa.types.is_decimal(column.type) else column


_VIEWS = """
SELECT view_name, coalesce(comment, '') FROM duckdb_views()
WHERE database_name = 'catalog' AND NOT internal ORDER BY view_name
"""
_COLUMNS = """
SELECT table_name, column_name, data_type, coalesce(comment, '') FROM duckdb_columns()
WHERE database_name = 'catalog' AND NOT internal ORDER BY table_name, column_index
"""
