from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.cli.main import run
from store.errors import StoreError
from store.history.merge import merge_histories
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.reading.sandbox import run_sql

pytestmark = pytest.mark.slow

QUERY = "SELECT request_id FROM first_tokens ORDER BY ALL"


@pytest.fixture
def moved(tmp_path: Path, hands: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a history whose original is gone."""
    history = hands()
    live = history.open(1e9)
    history.write(1e9, make.entry(make.engine()), make.entry(make.first_token("r1"), 1))
    live.maintain(1e9)
    live.close()
    copy = tmp_path / "a copy's place"
    shutil.copytree(history.folder.path, copy)
    shutil.rmtree(history.folder.path)
    monkeypatch.chdir("/")
    return copy


def test_a_copy_is_read_wherever_it_is(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the library, the sandbox, the command line and a merge, with the original gone and from another folder."""
    with open_history(moved) as history:
        assert history.execute(QUERY).fetchall() == [("r1",)]
    assert run_sql(moved, QUERY).to_pylist() == [{"request_id": "r1"}]
    assert run(["sql", QUERY, "--store", str(moved), "--format", "csv"]) == 0
    assert '"r1"' in capsys.readouterr().out
    merged = moved.with_name("merged")
    second = moved.with_name("second")
    shutil.copytree(moved, second)
    merge_histories([moved, second], merged, now_s=2e9)
    with open_history(merged) as history:
        assert history.execute(QUERY).fetchall() == [("r1",)]


def test_plain_duckdb_reads_a_copy_from_its_folder(moved: Path) -> None:
    """`duckdb -readonly catalog.duckdb` in the folder, and from anywhere with the folder as its search path."""
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); c.execute(sys.argv[2]).fetchall(); print(c.sql(sys.argv[3]))"
    for place, name, before in (
        (moved, "catalog.duckdb", "SELECT 1"),
        (
            Path("/"),
            str(moved / "catalog.duckdb"),
            f"SET file_search_path = '{str(moved).replace(chr(39), chr(39) * 2)}'",
        ),
    ):
        command = [sys.executable, "-c", program, name, before, QUERY]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        assert "r1" in done.stdout, done.stderr


def test_a_folder_with_a_comma_is_read_where_it_is(tmp_path: Path, make: Any) -> None:
    """Its catalog names absolute paths, because a search path cannot name it."""
    folder = tmp_path / "one, two"
    with HistoryWriter(folder) as writer:
        writer.append([make.entry(make.first_token("r1"), 1)])
    with open_history(folder) as connection:
        assert connection.execute(QUERY).fetchall() == [("r1",)]
    assert run_sql(folder, QUERY).num_rows == 1
    with pytest.raises(StoreError):
        open_history(tmp_path / "nothing")
