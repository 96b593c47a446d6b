"""The tables of the history, as SQL text: one per kind of record, and the writer's own books.

Each column has its comment behind it; `statements` turns them into ``COMMENT ON``, so that they can be read in SQL.
The columns of a record's table follow from the record (`store.history.columns`).
Times ``*_s`` that name a moment are Unix seconds of the engine's clock, except ``received_s``: the controller's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from store.entries import (
    CalibrationMeasured,
    ClusterChanged,
    Decision,
    DriftDetected,
    EngineSeen,
    ModeSwitched,
    Outcome,
    Prediction,
    Promised,
    SettingsChanged,
    StoreRecord,
)
from store.history.columns import columns_of
from store.records import Arrived, Finished, FirstToken, Preempted, Snapshot

_RECORDS: dict[type[StoreRecord], tuple[str, str]] = {
    Arrived: ("arrivals", "Requests that entered an engine's queue; sent again (resent) after a controller came back."),
    FirstToken: ("first_tokens", "First output tokens."),
    Preempted: ("preemptions", "Running requests that lost their KV blocks and are recomputed."),
    Finished: ("completions", "The ends of requests; complete in themselves in case earlier facts are lost."),
    Snapshot: (
        "snapshots",
        "State of an engine, about ten times a second, with sums since the last one; of an idle engine that only says so, one in ten seconds.",
    ),
    EngineSeen: ("engines", "Engines that connected, came back or left."),
    Promised: ("promises", "The service class and the targets of each request that has any."),
    Prediction: ("predictions", "What was predicted of a request's output length."),
    Decision: ("decisions", "Index tables that were published for requests, and why."),
    Outcome: ("outcomes", "How predictions turned out."),
    CalibrationMeasured: (
        "calibration",
        "How predictions turned out lately: rolling windows for each model and each prompt cluster.",
    ),
    DriftDetected: ("drift_events", "Length distributions that changed, after which part of their past was forgotten."),
    ClusterChanged: (
        "cluster_changes",
        "Prompt clusters that were created, split, merged or removed; all models share them.",
    ),
    SettingsChanged: ("settings_history", "Settings sent to the engines, and why."),
    ModeSwitched: ("mode_switches", "Who switched the mode of all engines over HTTP, when and why: the audit trail."),
}
"""Name and comment of the table of each kind of record."""

TABLE_OF = {kind: name for kind, (name, _) in _RECORDS.items()}

_KEY = """
    engine_id VARCHAR NOT NULL,  -- Stable name of the engine; empty for rows that concern no single engine.
    session_id VARCHAR NOT NULL,  -- Random for each start of the engine; request ids are unique within it.
    batch BIGINT,  -- Number of the batch of facts that contained the row; NULL for rows that no engine sent in a batch.
    received_s DOUBLE NOT NULL,  -- When the controller handed the row to the history, Unix seconds."""

KEY_NAMES = ("engine_id", "session_id", "batch", "received_s")
"""Columns that begin each record's table."""

BATCHES = """
CREATE TABLE batches (  -- Batches of facts that are durable, each written in one transaction with its facts.
    session_id VARCHAR NOT NULL,  -- Session of the engine that sent it.
    batch BIGINT NOT NULL,  -- Its number, increasing within the session.
    received_s DOUBLE NOT NULL,  -- When the controller handed it to the history, Unix seconds.
)"""

SESSIONS = """
CREATE TABLE sessions (  -- The last durable batch of each session of an engine.
    session_id VARCHAR PRIMARY KEY,  -- Session of the engine.
    batch BIGINT NOT NULL,  -- Highest durable batch.
    received_s DOUBLE NOT NULL,  -- When it came, Unix seconds.
)"""

SEGMENTS = """
CREATE TABLE segments (  -- Parquet files that hold the sealed rows; never changed once listed.
    sequence BIGINT PRIMARY KEY,  -- Number of the segment, increasing.
    table_name VARCHAR NOT NULL,  -- Table whose rows it holds.
    path VARCHAR NOT NULL,  -- File, relative to the store.
    level BIGINT NOT NULL,  -- How often its rows were compacted.
    schema_version BIGINT NOT NULL,  -- Version of the schema it was written under; 0 if it may lack columns that were added since.
    rows BIGINT NOT NULL,  -- Rows in it.
    bytes BIGINT NOT NULL,  -- Size of the file.
    first_received_s DOUBLE NOT NULL,  -- Earliest received_s in it.
    last_received_s DOUBLE NOT NULL,  -- Latest received_s in it.
    retired_s DOUBLE,  -- When it was compacted or outlived its retention; the file goes after a grace period.
)"""

PROGRESS = """
CREATE TABLE progress (  -- How far the present writer has come; one row.
    writer VARCHAR NOT NULL,  -- Random for each opening of the history.
    position BIGINT NOT NULL,  -- Entries up to this position are durable.
)"""

ROW_COLUMNS: dict[str, tuple[str, ...]] = {
    **{name: (*KEY_NAMES, *(column.name for column in columns_of(kind))) for kind, name in TABLE_OF.items()},
    "batches": ("session_id", "batch", "received_s"),
}
"""Names of the columns in the order of a row's values, by table."""

SEALED_TABLES = tuple(ROW_COLUMNS)
"""Tables whose rows move into segments."""


def _record_table(kind: type[StoreRecord], name: str, comment: str) -> str:
    columns = "\n".join(f"    {column.definition}" for column in columns_of(kind))
    return f"CREATE TABLE {name} (  -- {comment}{_KEY}\n{columns}\n)"


TABLES = (
    *(_record_table(kind, name, comment) for kind, (name, comment) in _RECORDS.items()),
    BATCHES,
    SESSIONS,
    SEGMENTS,
    PROGRESS,
)
"""The text of each table."""

TABLE_NAMES = (*TABLE_OF.values(), "batches", "sessions", "segments", "progress")
"""Their names, in the same order."""

_TABLE_LINE = re.compile(r"CREATE TABLE (?P<table>\w+) \(  -- (?P<comment>.+)")
_COLUMN_LINE = re.compile(r"\s+(?P<column>\w+) .+,  -- (?P<comment>.+)")


def statements(create: str) -> list[str]:
    r"""A table's ``CREATE`` and the ``COMMENT ON`` of the table and of each column.

    >>> statements("CREATE TABLE t (  -- Things.\n    a_s DOUBLE,  -- A's time.\n)")[1:]
    ["COMMENT ON TABLE t IS 'Things.'", "COMMENT ON COLUMN t.a_s IS 'A''s time.'"]
    """
    head = _TABLE_LINE.search(create)
    assert head is not None, "a table's text starts with CREATE TABLE name (  -- comment"
    table = head["table"]
    columns = _COLUMN_LINE.finditer(create, head.end())
    return [
        create,
        f"COMMENT ON TABLE {table} IS {quoted(head['comment'])}",
        *(f"COMMENT ON COLUMN {table}.{line['column']} IS {quoted(line['comment'])}" for line in columns),
    ]


def quoted(text: str) -> str:
    """An SQL string literal.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def parquet_rows(files: Iterable[str], *, union_by_name: bool = True) -> str:
    """A table function over the rows of exactly these files.

    DuckDB would take a folder such as ``tenant=acme`` for a partition, and its name for the value of every row.

    >>> parquet_rows(["/h/1.parquet"])
    "read_parquet(['/h/1.parquet'], hive_partitioning = false, union_by_name = true)"
    """
    union = ", union_by_name = true" if union_by_name else ""
    return f"read_parquet([{', '.join(map(quoted, files))}], hive_partitioning = false{union})"
