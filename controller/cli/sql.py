"""`sql`: prints or writes the answer to one SQL statement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import pyarrow as pa
from pyarrow import csv, parquet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from store.atomic_file import write_whole
from store.errors import BadInputError, StoreError
from store.formatting import printable, printable_json
from store.history.reader import require_catalog
from store.reading.plain_values import plain, text_of, values_of
from store.reading.sandbox import TRUNCATED, run_sql
from store.reading.spreadsheet import for_spreadsheets

Output: TypeAlias = Literal["table", "csv", "json", "parquet"]


def run_query(
    store: Path, statement: str, *, output: Output, file: Path | None, row_limit: int, raw: bool = False
) -> None:
    """Run a statement and write the answer; raises `BadInputError`.

    With ``raw`` text goes into CSV as it is recorded: for programs, not for terminals and spreadsheets.
    """
    if output == "parquet" and file is None:
        raise BadInputError("format 'parquet' is binary: name a file with --output")
    try:
        require_catalog(store)
    except StoreError as error:
        raise BadInputError(str(error)) from None
    answer = run_sql(store, statement, row_limit=row_limit)
    if output == "parquet" and file is not None:
        write_whole(file, _parquet(answer))
    elif output == "table" and file is None:
        Console().print(_for_people(answer), highlight=False)
    else:
        _write_text((_raw_csv if raw and output == "csv" else _TEXT[output])(answer), file)
    if (answer.schema.metadata or {}).get(TRUNCATED) == b"true":
        sys.stderr.write(f"sagesched: only the first {row_limit} rows are shown: raise --limit to see more\n")


def _for_people(answer: pa.Table) -> Table:
    table = Table()
    for name in answer.column_names:
        table.add_column(_cell(name))
    columns = [values_of(column) for column in answer.columns]
    for row in zip(*columns, strict=True):
        table.add_row(*("" if value is None else _cell(_shown(value)) for value in row))
    return table


def _shown(value: object) -> str:
    return text_of(value) if isinstance(value, dict | list | bytes) else str(value)


def _cell(text: str) -> Text:
    """Text as it is: no markup of Rich's, nothing that drives a terminal."""
    return Text(printable(text, keep="\n"))


def _csv(answer: pa.Table) -> str:
    """The answer for spreadsheets and terminals."""
    return _raw_csv(for_spreadsheets(plain(answer)))


def _raw_csv(answer: pa.Table) -> str:
    stream = pa.BufferOutputStream()
    csv.write_csv(plain(answer), stream)
    return str(stream.getvalue().to_pybytes().decode())


def _json(answer: pa.Table) -> str:
    columns = [values_of(column) for column in answer.columns]
    rows = [dict(zip(answer.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
    return printable_json(msgspec.json.format(msgspec.json.encode(rows)).decode()) + "\n"


def _table(answer: pa.Table) -> str:
    console = Console(file=None, width=200)
    with console.capture() as capture:
        console.print(_for_people(answer), highlight=False)
    return capture.get()


_TEXT = {"csv": _csv, "json": _json, "table": _table}


def _write_text(text: str, file: Path | None) -> None:
    if file is None:
        sys.stdout.write(text)
        return
    write_whole(file, text)


def _parquet(answer: pa.Table) -> bytes:
    """Every value in its own type where Parquet has it."""
    stream = pa.BufferOutputStream()
    try:
        parquet.write_table(answer, stream)
    except pa.ArrowException:
        stream = pa.BufferOutputStream()
        parquet.write_table(plain(answer), stream)
    return bytes(stream.getvalue().to_pybytes())
