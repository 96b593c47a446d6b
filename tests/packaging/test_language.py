"""The documents' language: the linters' rules, explained terms, and commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from dashboard.text.glossary import GLOSSARY
from store.errors import SageError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "deploy").glob("*.md")]
README_LINES = 120
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`]*`")
FILE = re.compile(r"\S+\.md\b")
ABBREVIATION = re.compile(r"\b[A-Z][A-Z0-9]{2,}\b")
KNOWN = """
API CI CPU CRC CSV CUDA DNS GPU HTML HTTP HTTPS JSON JSONL KEDA LLM NTP OTLP SDK SHA SQL SSH TCP TLS TOML URL UTC
""".split()  # noqa: SIM905 - a list of words
"""Abbreviations that a platform engineer knows; all others are in the glossary."""
NAMES = """
ADWIN BERT CURVE EAGLE FFFD GET GPL H800 LMSYS MODEL MTP NAME NULL NVIDIA P95 README S102 S301 S307 S602 S605 SIGCONT SIGKILL SIGSTOP
""".split()  # noqa: SIM905 - a list of words
"""Names of things, and what stands for a reader's own word."""


def linted(tool: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(tool)
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_linters_find_nothing_in_the_documents() -> None:
    """Links, anchors, line length and house words by rumdl; spelling, of the code too, by typos."""
    for tool, arguments in {"rumdl": ["check", "--no-cache", "."], "typos": []}.items():
        done = linted(tool, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[a](nowhere.md)", "MD057"),
        ("[a](other.md#nowhere)", "MD051"),
        ("[a](#nowhere)", "MD051"),
        ("word " * 60, "MD013"),
        ("Nobody overtakes it.", "MD061"),
        ("The peak was foretold.", "MD061"),
        ("Two seconds were asked.", "MD061"),
        ("Its length is learnt.", "MD061"),
        ("Ours is ahead.", "MD061"),
        ("Requests whose prompts are long wait.", "MD061"),
    ],
)
def test_a_document_that_breaks_a_rule_is_found(text: str, rule: str, tmp_path: Path) -> None:
    """Each rule that the documents are held to is in force."""
    (tmp_path / "other.md").write_text("# Other\n\nText.\n")
    (tmp_path / "page.md").write_text(f"# Page\n\n{text.strip()}\n")
    done = linted("rumdl", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), ".", folder=tmp_path)
    assert done.returncode == 1
    assert "page.md:3:" in done.stdout
    assert rule in done.stdout


@pytest.mark.parametrize("word", ["foretold", "rivals", "recieve"])
def test_a_house_word_and_a_misspelled_one_are_found(word: str, tmp_path: Path) -> None:
    """In code as in documents."""
    (tmp_path / "module.py").write_text(f"{word}_s = 1\n")
    done = linted("typos", "--config", str(ROOT / "pyproject.toml"), ".", folder=tmp_path)
    assert done.returncode == 2
    assert word in done.stdout


def test_words_of_the_house_are_kept_where_no_linter_reads() -> None:
    """In the alerts, the panels of Grafana and the help of every command."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["rumdl"]
    forbidden = re.compile(rf"(?<!-)\b({'|'.join(settings['MD061']['terms'])})\b", re.IGNORECASE)
    for page in (
        "monitoring/alerts.yml",
        "monitoring/grafana.json",
        "commands.md",
        "metrics.md",
        "settings.md",
        "views.md",
    ):
        assert sorted({found[0] for found in forbidden.finditer((ROOT / "docs" / page).read_text())}) == [], page


def test_every_picture_is_there_and_shown() -> None:
    """What a document shows exists, light and dark, and no picture is left that none shows."""
    named = {
        (document.parent / source).resolve()
        for document in DOCUMENTS
        for source in re.findall(r'(?:src(?:set)?="|!\[[^\]]*\]\()([^")]+)', document.read_text())
    }
    assert {picture for picture in named if not picture.exists()} == set()
    assert set((ROOT / "docs" / "images").resolve().iterdir()) - named == set()


def test_the_readme_is_short() -> None:
    """Whoever finds the project reads it whole."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def prose(document: Path) -> str:
    """A document without its code and the names of files."""
    return FILE.sub("", CODE.sub("", FENCED.sub("", document.read_text())))


def test_every_abbreviation_is_in_the_glossary() -> None:
    """A reader who meets one finds what it means."""
    explained = set(ABBREVIATION.findall(" ".join(GLOSSARY))) | {*KNOWN, *NAMES}
    unexplained = {
        document.name: found
        for document in DOCUMENTS
        if document.name not in {"CHANGELOG.md", "licences.md", "views.md"}
        and (found := set(ABBREVIATION.findall(prose(document))) - explained)
    }
    assert unexplained == {}


def test_every_term_of_the_glossary_is_used() -> None:
    """No term is left whose thing is gone."""
    pages = [page for page in DOCUMENTS if page.name != "glossary.md"] + list((ROOT / "dashboard").rglob("*.py"))
    text = " ".join(page.read_text() for page in pages if page.name != "glossary.py").casefold()
    assert [term for term in GLOSSARY if term.split(",")[0].casefold() not in text] == []


def command_lines(document: Path) -> Iterator[str]:
    """A document's lines of shell, and each piece of code in its text that is more than a name."""
    text = document.read_text()
    for kind, block in FENCED.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "sh":
            yield from lines
        elif kind == "console":
            yield from (line[2:] for line in lines if line.startswith("$ "))
    yield from (found[1:-1] for found in CODE.findall(FENCED.sub("", text)) if found.count(" ") > 1)


def calls(line: str) -> Iterator[list[str]]:
    """The words of each call of the command line in a line of shell."""
    for part in re.split(r"&&|\s&$|;|\|", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue
        for program in (["sagesched"], ["python", "-m", "controller"]):
            if words[: len(program)] == program and len(words) > len(program):
                yield words[len(program) :]


def test_every_command_in_the_documents_exists(check_command: Callable[[list[str]], None]) -> None:
    """Its name and every flag are known, and its values are valid."""
    pages = [page for page in DOCUMENTS if page.name != "CHANGELOG.md"]
    found = [(page.name, words) for page in pages for line in command_lines(page) for words in calls(line)]
    assert len(found) > 60
    wrong = [(page, shlex.join(words), problem) for page, words in found if (problem := _problem(check_command, words))]
    assert wrong == []


def _problem(check_command: Callable[[list[str]], None], words: list[str]) -> str | None:
    try:
        check_command(words)
    except (typer.Exit, SystemExit, SageError):  # What it would do, and a file that the reader has.
        return None
    except Exception as error:  # noqa: BLE001 - Typer does not export the root of its usage errors
        return repr(error)
    return None
