"""The measured tables of the documents can be made again, and a document that says otherwise is found."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TABLE = "| order | mean |\n|---|---|\n| FCFS | 29.8 |\n| SageSched | 0.9 |"


def test_every_table_stands_between_its_markers(docs_script: Callable[[str], ModuleType]) -> None:
    """`make figures` makes all of them, and none is left over."""
    tables = docs_script("figures").TABLES
    found = {}
    documents = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for document in documents.split():
        for part in (ROOT / document).read_text().split("<!-- figures: ")[1:]:
            name = part.split(" -->")[0]
            found[name] = document
            assert part.partition(f"<!-- end: {name} -->")[0].count("\n|") >= 3, f"{document} has a table {name}"
    assert found == {name: document for name, (document, _) in tables.items()}


@pytest.mark.parametrize(
    ("stands", "code"),
    [
        (TABLE, 0),
        (TABLE.replace("29.8", "30.1"), 0),
        (TABLE.replace("29.8", "35.0"), 1),
        (TABLE.replace("SageSched", "Sage"), 1),
        (TABLE + "\n| one more | 1.0 |", 1),
        ("", 1),
    ],
)
def test_a_document_that_says_otherwise_is_found(  # noqa: PLR0917 - two of them are the case, four are fixtures
    stands: str,
    code: int,
    docs_script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within the tolerance it holds; another figure, another row and another name do not."""
    figures = docs_script("figures")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "TABLES", {"t": ("d.md", lambda: TABLE)})
    document = tmp_path / "d.md"
    document.write_text(f"before\n<!-- figures: t -->\n{stands}\n<!-- end: t -->\nafter\n")
    assert figures.main([]) == code
    assert ("should be" in capsys.readouterr().err) == bool(code)
    assert figures.main(["--write"]) == 0
    assert figures.main([]) == 0
    assert document.read_text() == f"before\n<!-- figures: t -->\n{TABLE}\n<!-- end: t -->\nafter\n"


def test_a_document_without_the_table_is_found(
    docs_script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have edited its markers away."""
    figures = docs_script("figures")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "TABLES", {"t": ("d.md", lambda: TABLE)})
    (tmp_path / "d.md").write_text(TABLE)
    assert figures.main([]) == 1
