import csv
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dashboard.charts import sql_answer
from dashboard.charts.sql_answer import Axes
from dashboard.data import sql_questions
from dashboard.data.sql_questions import Answer, QuestionTrouble, ask, read_schema
from store.reading.example_queries import USEFUL_QUERIES


def answer(path: Path, statement: str) -> Answer:
    found = ask(path, statement)
    assert isinstance(found, Answer), found
    return found


@pytest.mark.slow
def test_an_answer_downloads_as_csv_and_parquet_with_the_same_rows(recorded: Path) -> None:
    """Nested values and bytes become text in CSV and keep their type in Parquet; equal names are told apart."""
    statement = "SELECT request_id, [1, 2] AS pair, map {'a': 0.5} AS weights, 'x'::BLOB AS raw, 1 AS n, 2 AS n FROM completions"
    found = answer(recorded, statement + " ORDER BY request_id LIMIT 3")
    assert found.as_csv().decode().splitlines()[1] == '"cmpl-0","1, 2","a: 0.5","78",1,2'
    rows = parquet.read_table(pa.BufferReader(found.as_parquet()))
    assert rows.num_rows == 3
    assert rows.column_names == ["request_id", "pair", "weights", "raw", "n", "n_1"]
    assert rows.column("pair").to_pylist() == [[1, 2]] * 3
    assert not found.truncated


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["DELETE FROM completions", "COPY completions TO 'x.csv'", "SELECT 1; SELECT 2", " "]
)
def test_a_forbidden_statement_is_refused_with_its_reason(recorded: Path, statement: str) -> None:
    """Nothing is raised; the words say what to give instead."""
    refused = ask(recorded, statement)
    assert isinstance(refused, QuestionTrouble)
    assert refused.kind == "statement"
    assert "query" in refused.detail or "SELECT" in refused.detail


def test_no_downloaded_text_is_a_formula(recorded: Path) -> None:
    """A spreadsheet would run it when the file is opened; numbers stay numbers."""
    found = answer(recorded, """SELECT '=1+1' AS "@a", ['-2'] AS nested, '+3'::BLOB AS bytes, -4 AS number""")
    heading, row = csv.reader(found.as_csv().decode().splitlines())
    assert heading == ["'@a", "nested", "bytes", "number"]
    assert (row[0], row[1], row[3]) == ("'=1+1", "'-2", "-4")


def test_only_so_many_statements_run_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each may take a gigabyte: who waits for too long is told so, and a place is free again when one has ended."""
    found: list[Answer | QuestionTrouble] = []

    def run_sql(*_: object, **__: object) -> pa.Table:
        found.append(ask(tmp_path, "asked meanwhile"))
        return pa.table({"n": [1]})

    monkeypatch.setattr(sql_questions, "run_sql", run_sql)
    monkeypatch.setattr(sql_questions, "TIMEOUT_S", 0.01)
    for _ in range(2):
        found.clear()
        found.append(ask(tmp_path, "SELECT 1"))
        refused, *answered = found
        assert isinstance(refused, QuestionTrouble)
        assert refused.detail.startswith("2 other statements")
        assert [type(each) for each in answered] == [Answer] * sql_questions.STATEMENTS_AT_ONCE


def test_a_missing_history_is_said(tmp_path: Path) -> None:
    """For the statement and for the schema alike."""
    for found in (ask(tmp_path, "SELECT 1"), read_schema(tmp_path)):
        assert isinstance(found, QuestionTrouble)
        assert found.kind == "history"


def test_the_schema_has_every_view_with_a_meaning_for_every_column(recorded: Path) -> None:
    """What the browser of the schema shows."""
    schema = read_schema(recorded)
    assert not isinstance(schema, QuestionTrouble)
    assert {"requests", "predictions", "decisions", "latency_by_minute"} <= {view.name for view in schema}
    assert all(comment for view in schema for _, _, comment in view.columns)


@pytest.mark.slow
def test_every_saved_query_is_answered_and_shown(recorded: Path) -> None:
    """Whatever types it answers in, the screen and CSV can have it."""
    for query in USEFUL_QUERIES:
        found = answer(recorded, query.statement)
        assert found.shown().num_columns == found.rows.num_columns
        assert found.as_csv()


def test_the_suggested_chart_runs_over_time_where_there_is_time() -> None:
    """Else bars over the first column; nothing where there are no numbers or a single row."""
    moments = pa.array([2, 1], pa.timestamp("us"))
    assert sql_answer.suggested(pa.table({"n": [1, 2], "t": moments})) == Axes("t", ("n",), "lines")
    assert sql_answer.suggested(pa.table({"who": ["a", "b"], "n": [1, 2]})) == Axes("who", ("n",), "bars")
    assert sql_answer.suggested(pa.table({"who": ["a", "b"]})) is None
    assert sql_answer.suggested(pa.table({"who": ["a"], "n": [1]})) is None
    drawn = sql_answer.answer(pa.table({"n": [1, 2], "t": moments}), Axes("t", ("n",), "lines"))
    assert list(drawn.data[0].y) == [2, 1]
