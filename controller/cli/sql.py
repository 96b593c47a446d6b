"""`sql`: prints or writes the answer to one SQL statement."""

from __future__ import annotations

import math
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

_UNBOUNDED = 1_000_000
"""A width at which every grid fits."""

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
        _print(answer)
    else:
        _write_text((_raw_csv if raw and output == "csv" else _TEXT[output])(answer), file)
    if (answer.schema.metadata or {}).get(TRUNCATED) == b"true":
        sys.stderr.write(f"sagesched: only the first {row_limit} rows are shown: raise --limit to see more\n")


def _print(answer: pa.Table) -> None:
    """Print a grid if the screen is wide enough for all of it, and else each row as lines of names and values."""
    screen = Console()
    table = _for_people(answer)
    width = Console(width=_UNBOUNDED).measure(table).maximum
    if screen.is_terminal and width > screen.width:
        screen.print(_one_below_the_other(answer), highlight=False, soft_wrap=True)
    else:
        Console(width=max(screen.width, width)).print(table, highlight=False)


def _one_below_the_other(answer: pa.Table) -> Text:
    """Each row as a block of lines, as psql's expanded display."""
    longest = max(map(len, answer.column_names), default=0)
    columns = [values_of(column) for column in answer.columns]
    lines: list[str] = []
    for number, row in enumerate(zip(*columns, strict=True), 1):
        lines.append(f"-- row {number} --")
        lines += [
            f"{name:<{longest}}  {'' if value is None else _shown(value)}"
            for name, value in zip(answer.column_names, row, strict=True)
        ]
    return _cell("\n".join(lines))


def _for_people(answer: pa.Table) -> Table:
    table = Table()
    for name in answer.column_names:
        table.add_column(_cell(name))
    columns = [values_of(column) for column in answer.columns]
    for row in zip(*columns, strict=True):
        table.add_row(*("" if value is None else _cell(_shown(value)) for value in row))
    return table


def _shown(value: object) -> str:
    if isinstance(value, float):
        return _number(value)
    return text_of(value) if isinstance(value, dict | list | bytes) else str(value)


def _number(value: float) -> str:
    """A number with at most six decimals, or six digits where that would show nothing of it.

    >>> _number(0.052097320556640625), _number(1790000000.25), _number(3.0), _number(2e-09)
    ('0.052097', '1790000000.25', '3.0', '2e-09')
    """
    if not math.isfinite(value) or 0.0 < abs(value) < 0.001 or abs(value) >= 1e15:
        return f"{value:.6g}"
    return str(round(value, 6))


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
