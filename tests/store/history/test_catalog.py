"""The catalog that is made from the last one is the catalog that is made from nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from store.history.catalog import publish_catalog
from store.history.reader import open_history

NOW_S = 1_772_000_000.0


def described(path: Path) -> list[list[Any]]:
    """Everything that a reader may see of a catalog: views, columns, comments, sessions and rows."""
    questions = (
        "SELECT view_name, sql, comment FROM duckdb_views() WHERE NOT internal ORDER BY 1",
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal ORDER BY 1, column_index",
        "FROM sealed_batches ORDER BY ALL",
        "FROM catalog_info",
        "SELECT * FROM first_tokens ORDER BY ALL",
        "SELECT count(*) FROM requests",
    )
    with open_history(path) as connection:
        return [connection.sql(question).fetchall() for question in questions]


def test_a_catalog_made_from_the_last_is_that_made_from_nothing(hands: Callable[..., Any], make: Any) -> None:
    """Over sealings of one table and of another, with sessions that come; and it stays as small."""
    history = hands()
    live = history.open(NOW_S)
    for number in range(12):
        entry = make.entry(make.first_token(f"{number}") if number % 3 else make.arrived(f"{number}"), batch=number + 1)
        history.write(NOW_S + number, entry)
        live.maintain(NOW_S + number)
        assert live._views
    folder = history.folder
    grown = described(folder.path), folder.catalog.stat().st_size
    publish_catalog(live._connection, folder, live._tables, live._segments.active(), now_s=NOW_S + 11)
    assert described(folder.path) == grown[0]
    assert grown[1] < 3 * folder.catalog.stat().st_size


def test_a_catalog_that_is_not_the_last_one_published_is_made_anew(hands: Callable[..., Any], make: Any) -> None:
    """Whatever lies in its place: what was spoilt or put there by others is not built upon."""
    history = hands()
    live = history.open(NOW_S)
    history.write(NOW_S, make.entry(make.first_token("a")))
    live.maintain(NOW_S)
    before = described(history.folder.path)
    history.folder.catalog.write_bytes(b"no database")
    live.maintain(NOW_S)
    assert described(history.folder.path) == before
