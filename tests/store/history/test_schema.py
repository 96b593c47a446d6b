from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from store.entries import SettingsChanged
from store.errors import StoreError, StoreSchemaError
from store.history import schema, tables, views
from store.history.columns import columns_of, record_of, values_of
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.records import EngineRules, Settings


def test_every_table_view_and_column_says_what_it_is(hands: Callable[..., Any]) -> None:
    """In the live file and in the catalog; a line of SQL whose comment was not understood would show here."""
    history = hands()
    live = history.open(1.0)
    bare = "SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NULL AND NOT internal"
    with open_history(history.folder.path) as catalog:
        assert catalog.sql(bare).fetchall() == []
        assert (
            catalog.sql("SELECT view_name FROM duckdb_views() WHERE comment IS NULL AND NOT internal").fetchall() == []
        )
        assert catalog.sql("SELECT table_name FROM duckdb_tables() WHERE comment IS NULL").fetchall() == []
        shown = {name for (name,) in catalog.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    made = {"requests", "latency_by_minute", "calibration_by_day", "service_levels", "tenants", "sessions"}
    assert shown == {*tables.SEALED_TABLES, *made}
    assert live._connection.sql(f"{bare} AND table_name <> 'schema_version'").fetchall() == []
    assert len(views.VIEWS) == len(made)


@pytest.mark.parametrize(
    "statements",
    [
        [
            "CREATE TABLE schema_version (version BIGINT, applied_s DOUBLE)",
            "INSERT INTO schema_version VALUES (999, 1.0)",
        ],
        ["CREATE TABLE customers (name VARCHAR)"],
    ],
)
def test_an_unknown_schema_is_refused_untouched(tmp_path: Path, statements: list[str]) -> None:
    """A newer version, or a database of something else: the message says what to do and no byte changes."""
    live = tmp_path / "live.duckdb"
    with duckdb.connect(live) as connection:
        for statement in statements:
            connection.execute(statement)
    before = live.read_bytes()
    with pytest.raises(StoreSchemaError, match="choose another folder with --store"):
        HistoryWriter(tmp_path).start()
    assert live.read_bytes() == before
    assert not (tmp_path / "catalog.duckdb").exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """It is named, and left as it is."""
    (tmp_path / "live.duckdb").write_text("not a database")
    with pytest.raises(StoreError, match=r"live\.duckdb cannot be opened"):
        HistoryWriter(tmp_path).start()
    assert (tmp_path / "live.duckdb").read_text() == "not a database"


@pytest.mark.parametrize("room_bytes", [0, 4096, 12_288, 100_000, 300_000])
def test_a_disk_that_is_full_at_the_very_start_spoils_nothing(tmp_path: Path, room_bytes: int) -> None:
    """The history cannot be opened and says so; once there is room it can."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"has room|close what else has it open"):
            HistoryWriter(tmp_path / "history").start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with HistoryWriter(tmp_path / "history"):
        pass
    assert not list(tmp_path.rglob("*.new*"))


OLD_FORM = (
    "ALTER TABLE completions DROP COLUMN itl_max_s",
    "ALTER TABLE settings_history DROP COLUMN by_arrival",
    "ALTER TABLE settings_history DROP COLUMN sessions",
    "ALTER TABLE settings_history DROP COLUMN step_budget_tokens",
    "ALTER TABLE completions ADD COLUMN energy_j DOUBLE DEFAULT 7.0",
    "ALTER TABLE completions ALTER COLUMN energy_j SET NOT NULL",
    "ALTER TABLE completions ALTER COLUMN energy_j DROP DEFAULT",
    "UPDATE schema_version SET version = 4",
)
"""What makes a live file one of an earlier release: a table and columns less, and a column that is written no more."""


def test_a_history_of_an_earlier_release_is_completed_and_written_on(hands: Callable[..., Any], make: Any) -> None:
    """What was sealed and what was not are read together with what comes, also once they are compacted.

    Fields that an earlier release did not know are NULL, and read as their defaults where they are never None.
    """
    history = hands()
    live = history.open(1.0)
    for statement in OLD_FORM:
        live._connection.execute(statement)
    old = {"engine_id": "'gpu-1'", "session_id": "'s'", "received_s": "1.0"}
    for request_id in "ab":
        _insert(live._connection, "completions", make.finished(request_id), {**old, "energy_j": "7.0"})
        live._segments.seal(1.0)
    settings = Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules())
    rules = SettingsChanged(time_s=1.0, settings=settings, reason="start")
    _insert(live._connection, "settings_history", rules, old)
    live._connection.execute("DROP TABLE promises")
    history.close()
    with duckdb.connect(history.folder.catalog) as catalog:
        catalog.execute("CREATE OR REPLACE VIEW promises AS SELECT 1 AS weight")
    with pytest.raises(StoreError, match=r"written by an earlier release \(it lacks promises\.engine_id\): start"):
        open_history(history.folder.path)

    live = history.open(3.0, writer="later")
    history.write(3.0, make.entry(make.finished("c")))
    live.maintain(4.0)
    for _ in range(2):
        with open_history(history.folder.path) as catalog:
            rows = catalog.sql("SELECT request_id, energy_j FROM completions ORDER BY request_id").fetchall()
            assert rows == [("a", 7.0), ("b", 7.0), ("c", None)]
            assert catalog.sql("SELECT count(itl_max_s), count(*) FROM completions").fetchall() == [(0, 3)]
            assert catalog.sql("SELECT count(*) FROM promises").fetchall() == [(0,)]
            (row,) = catalog.sql("SELECT * FROM settings_history").to_arrow_table().to_pylist()
            assert row["by_arrival"] is None
            assert record_of(SettingsChanged, row) == rules
        live.maintain(90_000.0)
    versions = live._connection.sql("SELECT version, applied_s FROM schema_version ORDER BY version").fetchall()
    assert versions == [(4, 1.0), (schema.VERSION, 3.0)]
    assert live._connection.execute("SELECT comment FROM duckdb_columns() WHERE column_name = 'itl_max_s'").fetchall()[
        0
    ][0]


def test_segments_that_lack_a_column_are_read_after_they_became_one(hands: Callable[..., Any], make: Any) -> None:
    """The merged segment lacks it as they do."""
    history = hands()
    live = history.open(1.0)
    live._connection.execute("ALTER TABLE completions DROP COLUMN itl_max_s")
    for request_id in "ab":
        _insert(
            live._connection,
            "completions",
            make.finished(request_id),
            {"engine_id": "'e'", "session_id": "'s'", "received_s": "1.0"},
        )
        live._segments.seal(1.0)
    history.close()
    live = history.open(90_000.0)
    assert [segment.schema_version for segment in live._segments.active()] == [schema.BEFORE]
    with open_history(history.folder.path) as catalog:
        assert catalog.sql("SELECT count(*), count(itl_max_s) FROM completions").fetchall() == [(2, 0)]


def test_a_completion_that_fails_leaves_what_there_was(
    hands: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is none."""
    history = hands()
    live = history.open(1.0)
    live._connection.execute("ALTER TABLE completions DROP COLUMN itl_max_s")
    live._connection.execute("DROP TABLE promises")
    history.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "quoted", lambda _: "a name without quotes")
        with pytest.raises(duckdb.Error):
            history.open(2.0)
    with duckdb.connect(history.folder.live) as connection:
        names = connection.sql("SELECT table_name, column_name FROM duckdb_columns()").fetchall()
    assert not {("completions", "itl_max_s"), ("promises", "weight")} & set(names)
    history.open(3.0)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, record: Any, more: dict[str, str]) -> None:
    """Put a record into a table that lacks some of its columns."""
    names = [column.name for column in columns_of(type(record))]
    there = {name for (name,) in connection.execute(f"SELECT column_name FROM (DESCRIBE {table})").fetchall()}
    values = {
        name: value
        for name, value in zip(names, values_of(type(record))(record), strict=True)
        if name in there and not isinstance(value, tuple)
    }
    marks = ", ".join([*more.values(), *("?" for _ in values)])
    connection.execute(f"INSERT INTO {table} ({', '.join([*more, *values])}) VALUES ({marks})", list(values.values()))
