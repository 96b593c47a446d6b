from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from store.errors import StoreError, StoreSchemaError
from store.history import schema, tables, views
from store.history.reader import open_history
from store.history.writer import HistoryWriter


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


@pytest.mark.slow
def test_a_migration_is_run_once_recorded_and_reads_old_segments(
    hands: Callable[..., Any], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of a later version is NULL in what was sealed before it existed."""
    history = hands()
    live = history.open(1.0)
    history.write(1.0, make.entry(make.finished("a")), make.entry(make.first_token("a")))
    live.maintain(2.0)
    history.write(2.0, make.entry(make.finished("b")))
    history.close()
    added = (
        "ALTER TABLE completions ADD COLUMN energy_j DOUBLE",
        "COMMENT ON COLUMN completions.energy_j IS 'Energy.'",
    )
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    for _ in range(2):
        live = history.open(3.0, writer="later")
        versions = live._connection.sql("SELECT version, applied_s FROM schema_version ORDER BY version").fetchall()
        assert versions == [(1, 1.0), (2, 3.0)]
        history.close()
    live = history.open(4.0, writer="last")
    history.write(4.0, make.entry(make.finished("c")))
    live.maintain(5.0)
    history.close()
    with open_history(history.folder.path) as catalog:
        rows = catalog.sql("SELECT request_id, energy_j FROM completions ORDER BY request_id").fetchall()
        assert rows == [("a", None), ("b", None), ("c", None)]
        assert catalog.sql("SELECT count(*) FROM requests").fetchall() == [(3,)]


def test_a_migration_that_fails_leaves_the_version_before_it(
    hands: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a migration is none."""
    history = hands()
    history.open(1.0)
    history.close()
    broken = ("ALTER TABLE completions ADD COLUMN energy_j DOUBLE", "ALTER TABLE nowhere ADD COLUMN x DOUBLE")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(duckdb.Error):
            history.open(2.0)
    live = history.open(3.0)
    columns = live._connection.sql(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = 'completions'"
    ).fetchall()
    assert ("energy_j",) not in columns
