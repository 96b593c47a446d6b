import importlib.util
import re
from pathlib import Path
from types import ModuleType

import duckdb
import pytest

from store.reader import open_history
from store.writer import HistoryWriter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    folder = tmp_path_factory.mktemp("documents") / "history"
    with HistoryWriter(folder):
        pass
    return open_history(folder)


@pytest.mark.parametrize("document", ["sql.md", "operating.md"])
def test_every_view_setting_and_metric_is_documented(reference: ModuleType, document: str) -> None:
    """The generated parts of the documents are what the code has; `make reference` renews them."""
    text = (ROOT / "docs" / document).read_text()
    assert reference.renewed(document, text) == text


def test_every_query_in_the_documents_runs(history: duckdb.DuckDBPyConnection) -> None:
    """The SQL in docs/sql.md is valid on a fresh history."""
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "sql.md").read_text(), re.DOTALL)
    assert len(queries) >= 4
    for query in queries:
        history.execute(query).fetchall()


def test_every_command_is_in_the_readme() -> None:
    """The README's table names all commands that there are, and no other."""
    from controller.cli import app  # noqa: PLC0415 - the command line is slow to import

    commands = {
        command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        for command in app.registered_commands
    }
    named = set(re.findall(r"^\| `sagesched ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == commands


def test_links_between_documents_lead_somewhere() -> None:
    """No document points to a file that is not there."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"
