from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from store import live as live_file
from store import schema, segments, tables, views
from store.errors import StoreError, StoreSchemaError
from store.reader import learning_history, open_history
from store.writer import HistoryWriter


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
    assert shown == {*tables.SEALED_TABLES, "requests", "latency_by_minute", "calibration_by_day"}
    assert live._connection.sql(f"{bare} AND table_name <> 'schema_version'").fetchall() == []
    assert len(views.VIEWS) == 3


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
        assert versions == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 3.0)]
        history.close()
    with open_history(history.folder.path) as catalog:
        rows = catalog.sql("SELECT request_id, energy_j FROM completions ORDER BY request_id").fetchall()
        assert rows == [("a", None), ("b", None)]
        assert catalog.sql("SELECT count(*) FROM requests").fetchall() == [(2,)]


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
def test_a_history_of_every_former_version_opens_and_is_migrated(
    hands: Callable[..., Any], make: Any, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """What it holds, sealed or not, stays; what came later is empty there; new records find their columns and table."""
    history = hands()
    with monkeypatch.context() as first:
        first.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:version])
        later = {name for name, since in (("calibration", 2), ("cluster_changes", 4)) if since > version}
        before = tuple(name for name in tables.SEALED_TABLES if name not in later)
        for module in (schema, live_file, segments):
            first.setattr(module, "SEALED_TABLES", before)
        live = history.open(1.0)
        insert = (
            "INSERT INTO outcomes (engine_id, session_id, received_s, request_id, time_s, output_tokens, censored, "
            "pit, crps_tokens, log_score, within_50, within_90) "
            "VALUES ('e1', 's1', 1.0, ?, 1.0, 7, false, 0.5, 1.0, -1.0, true, true)"
        )
        live._connection.execute(insert, ["sealed"])
        history.write(1.0, make.entry(make.engine()), make.entry(make.prediction("sealed")))
        live.maintain(2.0)
        live._connection.execute(insert, ["unsealed"])
        history.write(2.0, make.entry(make.prediction("unsealed")))
        history.close()
    live = history.open(3.0)
    versions = live._connection.sql("SELECT version, applied_s FROM schema_version ORDER BY version").fetchall()
    assert versions == [(n, 1.0 if n <= version else 3.0) for n in range(1, len(schema.MIGRATIONS) + 1)]
    history.write(4.0, make.entry(make.calibration()), make.entry(make.outcome("new", answer=1)))
    history.write(4.0, make.entry(make.prediction("new")))
    live.maintain(5.0)
    with open_history(history.folder.path) as catalog:
        rows = catalog.sql("SELECT request_id, answer FROM outcomes ORDER BY received_s, request_id").fetchall()
        assert rows == [("sealed", None), ("unsealed", None), ("new", 1)]
        assert catalog.sql("SELECT model, coverage_90, trusted FROM calibration").fetchall() == [("m", 0.9, True)]
    past = [answer.features.decode() for answer in learning_history(history.folder.path, 10)]
    assert past == ["sealed", "unsealed", "new"]


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
