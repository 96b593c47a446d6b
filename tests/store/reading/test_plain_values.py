from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from controller.cli.main import run
from dashboard.data.sql_questions import Answer, ask
from store.history.writer import HistoryWriter

EVERY_TYPE = {
    "list": ("[1, 2, NULL]", [1, 2, None]),
    "map": ("MAP {'a': 1.5::DOUBLE}", {"a": 1.5}),
    "empty map": ("MAP {}", {}),
    "list of maps": ("[MAP {1: [2]}]", [{"1": [2]}]),
    "struct": ("{'a': 1, 'b': 'x'}", {"a": 1, "b": "x"}),
    "array": ("[1, 2]::INTEGER[2]", [1, 2]),
    "interval": ("INTERVAL '1 month 2 days 3 seconds'", "1 month 2 days 00:00:03"),
    "list of intervals": ("[INTERVAL 1 DAY]", "[1 day]"),
    "union": ("union_value(num := 2)", "2"),
    "infinity": ("'infinity'::TIMESTAMP", "infinity"),
    "minus infinity": ("'-infinity'::TIMESTAMPTZ", "-infinity"),
    "infinite second": ("'infinity'::TIMESTAMP_S", "infinity"),
    "infinite day": ("'-infinity'::DATE", "-infinity"),
    "list of infinities": ("['infinity'::TIMESTAMP]", ["infinity"]),
    "year before all": ("'0044-03-15 (BC)'::DATE", None),
    "far moment": ("{'t': '290000-01-01'::TIMESTAMP}", None),
    "far day": ("'5000000-01-01'::DATE", None),
    "moment": ("'2026-01-02 03:04:05'::TIMESTAMP", "2026-01-02T03:04:05"),
    "nanoseconds": ("'2026-01-01 00:00:00.123456789'::TIMESTAMP_NS", "2026-01-01 00:00:00.123456789"),
    "time": ("'12:34:56'::TIME", "12:34:56"),
    "time with zone": ("'12:34:56+02'::TIMETZ", "12:34:56+02"),
    "decimal": ("1.25::DECIMAL(18, 3)", "1.250"),
    "sum": ("sum(1::BIGINT)", 1),
    "huge": ("170141183460469231731687303715884105727::HUGEINT", 170141183460469231731687303715884105727),
    "unsigned huge": ("340282366920938463463374607431768211455::UHUGEINT", "340282366920938463463374607431768211455"),
    "big": ("1::BIGNUM", "1"),
    "blob": ("'\\xAA\\x00'::BLOB", "qgA="),
    "bits": ("'0101'::BIT", "0101"),
    "uuid": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "enum": ("'b'::ENUM('a', 'b')", "b"),
    "json": ("'{\"a\":1}'::JSON", '{"a":1}'),
    "nothing": ("NULL", None),
    "no number": ("'nan'::DOUBLE", None),
    "truth": ("true", True),
}
"""A value of every type of DuckDB in SQL, and as JSON has it; None where only that there is an answer is asked."""

QUERY = "SELECT " + ", ".join(f'{sql} AS "{name}"' for name, (sql, _) in EVERY_TYPE.items())


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history")
    HistoryWriter(path).start().close()
    return path


@pytest.mark.parametrize("output", ["table", "csv", "json", "parquet"])
def test_sql_answers_every_type_in_every_format(history: Path, output: str, tmp_path: Path) -> None:
    """No type ends in a traceback; JSON has the values, Parquet all columns."""
    file = tmp_path / "answer"
    assert run(["sql", QUERY, "--store", str(history), "--format", output, "--output", str(file)]) == 0
    if output == "json":
        [row] = json.loads(file.read_text())
        expected = {name: value for name, (_, value) in EVERY_TYPE.items() if value is not None}
        assert {name: row[name] for name in expected} == expected
    elif output == "parquet":
        assert parquet.read_table(file).column_names == list(EVERY_TYPE)
    elif output == "csv":
        assert '"infinity"' in file.read_text()
        assert "'-infinity" in file.read_text(), "a cell that begins like a formula is none"
    else:
        assert len(file.read_text().splitlines()) > 4, "a heading and a row"


def test_the_page_shows_every_type(history: Path) -> None:
    """With the same text, in the table and in both downloads."""
    answer = ask(history, QUERY)
    assert isinstance(answer, Answer)
    [shown] = answer.shown().to_pylist()
    assert (shown["infinity"], shown["map"], shown["bits"]) == ("infinity", "a: 1.5", "0101")
    assert "infinity" in answer.as_csv().decode()
    assert answer.as_parquet()
