"""Answers to SQL as neither a spreadsheet nor a terminal obeys them, for CSV."""

from __future__ import annotations

import pyarrow as pa

from store.formatting import spreadsheet_text


def for_spreadsheets(answer: pa.Table) -> pa.Table:
    """The answer with its text, bytes and headings as `spreadsheet_text`; other columns stay as they are."""
    columns = [_defused(column) for column in answer.columns]
    return pa.Table.from_arrays(columns, names=[spreadsheet_text(name) for name in answer.column_names])


def _defused(column: pa.ChunkedArray) -> pa.ChunkedArray:
    values = column.to_pylist()
    if not any(isinstance(value, (str, bytes)) for value in values):
        return column
    texts = (value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in values)
    safe = (None if text is None else spreadsheet_text(text) for text in texts)
    return pa.chunked_array([pa.array(safe, pa.string())])
