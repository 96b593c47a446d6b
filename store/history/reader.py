"""Reading a history: from any process, at any moment, beside a writer or without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import duckdb

from store.errors import StoreError
from store.history.catalog import search_in
from store.history.files import Folder
from store.history.tables import ROW_COLUMNS, quoted


class RecordedAnswer(NamedTuple):
    """What a learner needs of an answer of the past."""

    model: str
    features: bytes
    """Prompt features, little-endian float32."""
    output_tokens: int
    censored: bool
    """Whether only a lower bound of the length is known."""
    answer: int
    """Its number in the learner's order."""
    surprises: tuple[float, float] | None = None
    """By how much answers of its model and cluster were longer than predicted, as the learner was told."""


def open_history(path: Path) -> duckdb.DuckDBPyConnection:
    """A connection on which all views of the catalog have their plain names; nothing can be changed through it.

    It shows what was sealed when it was opened; open another one to see more.
    It may be kept open for the writer's grace period (ten minutes by default), after which a segment that it lists may
    be gone.
    Each connection is a database of its own, so that one in the same process may already show a newer catalog.

    Raises:
        StoreError: there is no history in the folder, or it is of an earlier release and was not opened by this one yet.
    """
    catalog = require_catalog(path)
    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
    try:
        connection.execute(f"ATTACH {quoted(str(catalog))} AS catalog (READ_ONLY)")
        connection.execute("USE catalog")
        connection.execute(search_in([catalog.parent]))
        connection.execute("SET python_enable_replacements = false")
        _refuse_older(connection, catalog)
    except StoreError:
        connection.close()
        raise
    except duckdb.Error as error:
        connection.close()
        raise StoreError(
            f"catalog {catalog} cannot be read: {str(error).splitlines()[0]}: start the controller once, it rebuilds it"
        ) from error
    return connection


def _refuse_older(connection: duckdb.DuckDBPyConnection, catalog: Path) -> None:
    """Refuse a catalog that lacks columns which this release reads; raises `StoreError`."""
    shown = set(
        connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND database_name = 'catalog'"
        ).fetchall()
    )
    lacking = [
        f"{table}.{name}" for table, names in ROW_COLUMNS.items() for name in names if (table, name) not in shown
    ]
    if lacking:
        raise StoreError(
            f"history {catalog.parent} was written by an earlier release (it lacks {lacking[0]}): start this release's "
            "controller on it once, it adds what is new and keeps all that is there"
        )


def require_catalog(path: Path) -> Path:
    """The catalog's file; raises `StoreError` when the folder holds no history."""
    catalog = Folder(Path(path).absolute()).catalog
    if not catalog.is_file():
        raise StoreError(
            f"folder {path} holds no history (no {catalog.name}): start the controller with --store {path}, "
            "or name the folder of one that ran"
        )
    return catalog


def learning_history(path: Path, limit: int, *, first: int = 0) -> Iterator[RecordedAnswer]:
    """Yield the latest answers with the features of their arrival, at most ``limit``, in the learner's order.

    Those before the answer with the number ``first`` are left out, and those whose prediction was dropped under pressure.
    Raises `StoreError` where a part of the history cannot be read.
    """
    with _reading(path), open_history(path) as connection:
        connection.execute(_LEARNING_HISTORY, {"limit": limit, "first": first})
        while rows := connection.fetchmany(1_000):
            for model, features, output_tokens, censored, answer, of_model, of_cluster in rows:
                surprises = None if of_model is None or of_cluster is None else (of_model, of_cluster)
                yield RecordedAnswer(model, features, output_tokens, censored, answer, surprises)


def next_answer(path: Path) -> int:
    """The number of the first answer that the history does not hold yet."""
    with _reading(path), open_history(path) as connection:
        (last,) = connection.execute("SELECT max(answer) FROM outcomes").fetchall()[0]
    return 0 if last is None else int(last) + 1


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in our words that a part of the history cannot be read."""
    try:
        yield
    except duckdb.Error as error:
        raise StoreError(
            f"history {path} cannot be read whole: {str(error).splitlines()[0]}: start the controller, "
            "it leaves out what is damaged and says what to restore"
        ) from error


_LEARNING_HISTORY = """
WITH latest AS (
    SELECT * FROM outcomes WHERE answer >= $first ORDER BY answer DESC, received_s DESC, time_s DESC, request_id DESC LIMIT $limit
),
known AS (
    SELECT session_id, request_id, arg_max(features, octet_length(features)) AS features
    FROM predictions SEMI JOIN latest USING (session_id, request_id)
    GROUP BY ALL
),
served AS (SELECT session_id, any_value(model) AS model FROM engines GROUP BY ALL)
SELECT served.model, known.features, latest.output_tokens, latest.censored, latest.answer,
    latest.model_surprise, latest.cluster_surprise
FROM latest
JOIN known USING (session_id, request_id)
JOIN served USING (session_id)
ORDER BY latest.answer, latest.received_s, latest.time_s, latest.request_id
"""
