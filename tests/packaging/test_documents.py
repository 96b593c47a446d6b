import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pytest

from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.reading.sandbox import run_sql

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("reference")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    folder = tmp_path_factory.mktemp("documents") / "history"
    with HistoryWriter(folder):
        pass
    return open_history(folder)


@pytest.mark.parametrize("document", ["commands.md", "glossary.md", "metrics.md", "settings.md", "sql.md", "views.md"])
def test_generated_pages_are_what_the_code_has(reference: ModuleType, document: str) -> None:
    """Every command, term, metric, setting, query and view is documented; `make reference` renews the pages."""
    assert document in reference.PARTS
    text = (ROOT / "docs" / document).read_text()
    assert reference.renewed(document, text) == text


def test_every_query_in_the_documents_runs(history: duckdb.DuckDBPyConnection) -> None:
    """The SQL in docs/sql.md is valid on a fresh history."""
    assert len(queries()) >= 20
    for query in queries():
        history.execute(query).fetchall()


def test_the_useful_queries_find_what_they_are_for(tmp_path: Path, serve_small: Callable[..., Any]) -> None:
    """On a history of a minute ago each answers with rows, but for those about what did not happen in it."""
    serve_small(tmp_path / "history", start_s=time.time() - 60.0)
    nothing_to_tell = {
        "drift_events", "cluster_changes", "fallback IS NOT NULL", "finished_s IS NULL", "FROM sessions",
    }  # fmt: skip
    with open_history(tmp_path / "history") as connection:
        empty = [query for query in queries() if not connection.execute(query).fetchall()]
    assert all(any(what in query for what in nothing_to_tell) for query in empty), empty
    assert len(empty) == len(nothing_to_tell)
    for query in queries():
        assert run_sql(tmp_path / "history", query, row_limit=5).num_rows <= 5


def queries() -> list[str]:
    """The SQL of docs/sql.md."""
    return re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "sql.md").read_text(), re.DOTALL)


def test_every_page_of_the_dashboard_is_documented() -> None:
    """The operator's table and the README name the pages of the navigation, and no other page is in the table."""
    entry = (ROOT / "dashboard" / "app.py").read_text()
    titles = set(re.findall(r'st\.Page\(\w+\.page, title="([^"]+)"', entry)) | {"Request"}
    table = (ROOT / "docs" / "operating.md").read_text().partition("### The dashboard")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| \*([^*]+)\* \|", table, re.MULTILINE)) == titles
    tour = (ROOT / "README.md").read_text().partition("## The dashboard")[2].partition("\n## ")[0]
    assert all(f"*{title}*" in tour for title in titles)
