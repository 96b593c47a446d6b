"""What clients choose may not drive the terminal, forge lines of the log, or run in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console
from rich.table import Table

from controller.cli.main import run
from controller.cli.output import Printable, PrintableFormatter
from store.entries import EngineSeen, Entry
from store.formatting import FORMULA_STARTS, printable, printable_json, spreadsheet_text
from store.history.writer import HistoryWriter
from store.records import Arrived, Finished, Hello

TITLE = "\x1b]0;pwned\x07"
REQUEST = f"r{TITLE}\x9b2J\n- forged\u202e"
TENANT = f"[red]=cmd|' /C calc'!A0{TITLE}[/\n- forged"
PLAIN = "cmpl-1"
HARMLESS = "\n\t"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    hello = Hello(
        engine_id="e",
        session_id="s",
        model=f"=m{TITLE}",
        engine="simulated",
        engine_version="0",
        kv_blocks=1,
        block_size_tokens=16,
        max_num_seqs=1,
        token_budget=1,
        max_model_len_tokens=1,
        prefix_caching=False,
        started_s=1.0,
    )
    arrived = Arrived(
        request_id=PLAIN, arrival_s=1.0, prompt_tokens=5, token_ids=b"", max_tokens=9, temperature=1.0, tenant=TENANT
    )
    finished = Finished(
        request_id=PLAIN,
        time_s=3.0,
        reason="stop",
        arrival_s=1.0,
        prompt_tokens=5,
        output_tokens=7,
        max_tokens=9,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
        scheduled_s=1.5,
        first_token_s=2.0,
    )
    seen = EngineSeen(time_s=1.0, event="connected", hello=hello)
    hostile = [structs.replace(fact, request_id=REQUEST) for fact in (arrived, finished)]
    records = [(None, seen), (1, arrived), (2, finished), *zip((3, 4), hostile, strict=True)]
    with HistoryWriter(tmp_path / "h") as writer:
        writer.append([Entry(engine_id="e", session_id="s", batch=batch, record=record) for batch, record in records])
    return tmp_path / "h"


def drives_a_terminal(text: str) -> bool:
    return printable(text, keep=HARMLESS) != text


NESTED = """SELECT 1 AS "=a\x1b[2J", {'a': tenant} AS nested, [request_id] AS list FROM requests"""


@pytest.mark.parametrize(
    ("output", "query"),
    [
        *((output, "SELECT request_id, tenant FROM requests") for output in ("table", "csv", "json")),
        *((output, NESTED) for output in ("table", "json")),
        *((output, "SELECT encode(request_id) AS bytes FROM requests") for output in ("table", "csv")),
    ],
)
def test_no_answer_to_sql_drives_the_terminal(
    history: Path, output: str, query: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids, tenants, names of columns, nested values and bytes, in every format that is printed."""
    assert run(["sql", query, "--store", str(history), "-f", output]) == 0
    shown = capsys.readouterr().out
    assert len(shown) > 10
    assert not drives_a_terminal(shown)


def test_csv_holds_no_formula_unless_it_is_asked_for_raw(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text cell or heading that begins like one has an apostrophe in front; numbers stay; --raw gives what is recorded."""
    query = """SELECT model, -5 AS n, '=1+1' AS "@x" FROM engines"""
    assert run(["sql", query, "--store", str(history), "-f", "csv"]) == 0
    (heading, row) = csv.reader(io.StringIO(capsys.readouterr().out))
    assert heading == ["model", "n", "'@x"]
    assert row == [f"'=m{printable(TITLE)}", "-5", "'=1+1"]
    assert run(["sql", query, "--store", str(history), "-f", "csv", "--raw"]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))[1] == [f"=m{TITLE}", "-5", "=1+1"]


def test_json_is_printable_and_loses_nothing(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes of JSON's own in place of control characters: a program reads what was recorded."""
    assert run(["sql", "SELECT request_id, tenant FROM requests", "--store", str(history), "-f", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(row["request_id"] for row in found) == sorted((PLAIN, REQUEST))
    assert {row["tenant"] for row in found} == {TENANT}
    assert run(["explain", PLAIN, "--store", str(history), "--json"]) == 0
    shown = capsys.readouterr().out
    assert not drives_a_terminal(shown)
    assert json.loads(shown)["facts"]["tenant"] == TENANT


def test_explain_prints_one_line_for_each_sentence(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line feed in a tenant's name makes no sentence, an escape sequence no title."""
    assert run(["explain", PLAIN, "--store", str(history)]) == 0
    shown = capsys.readouterr().out
    assert not drives_a_terminal(shown)
    assert "\n- forged" not in shown
    assert r"\x1b]0;pwned\x07" in shown


def test_an_error_names_what_was_given_on_one_line(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The unknown id that a script passes on is escaped too."""
    assert run(["explain", f"nobody{TITLE}\nforged", "--store", str(history)]) == 2
    shown = capsys.readouterr().err
    assert not drives_a_terminal(shown)
    assert shown.count("\n") == 1


def test_a_line_of_the_log_is_one_line() -> None:
    """Names from outside in a message or an exception: nothing forged, and the traceback keeps its lines."""
    error = ValueError(TITLE)
    about = (ValueError, error, None)
    record = logging.LogRecord("l", logging.WARNING, "p", 1, "engine %s", (f"e\n2026 INFO forged{TITLE}",), about)
    first, *rest = PrintableFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert first == r"WARNING engine e\n2026 INFO forged\x1b]0;pwned\x07"
    assert rest == [r"ValueError: \x1b]0;pwned\x07"]


def test_reports_on_the_terminal_keep_their_own_styles_only() -> None:
    """A table's cell with an escape sequence is written out; the styles that the report itself sets remain."""
    table = Table("name")
    table.add_row(TITLE, style="bold")
    console = Console(force_terminal=True, width=60, color_system="standard")
    with console.capture() as capture:
        console.print(Printable(table))
    shown = capture.get()
    assert r"\x1b]0;pwned" in shown
    assert "\x1b[1m" in shown
    assert "\x1b]" not in shown


@given(st.text())
def test_any_text_is_made_safe_once(text: str) -> None:
    """Nothing that is not shown is left, nothing shown is changed, and a second time changes nothing."""
    for make in (printable, spreadsheet_text):
        assert not drives_a_terminal(make(text))
    assert printable(printable(text)) == printable(text)
    assert not spreadsheet_text(text).startswith(FORMULA_STARTS)
    if text.isprintable():
        assert printable(text) == text


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_stays_what_it_is(value: object) -> None:
    """Only inside strings can such characters stand, and there their escapes mean the same."""
    shown = printable_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(shown) == value
