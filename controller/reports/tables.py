"""Tables of reports, for the terminal and for HTML pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rich.table import Table

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("mean_ttlt_s", "TTLT mean s", "{:.2f}"),
    ("p50_ttlt_s", "P50", "{:.2f}"),
    ("p90_ttlt_s", "P90", "{:.1f}"),
    ("p99_ttlt_s", "P99", "{:.1f}"),
    ("max_ttlt_s", "max", "{:.1f}"),
    ("mean_ttft_s", "TTFT mean s", "{:.2f}"),
    ("p99_ttft_s", "P99", "{:.1f}"),
    ("mean_tpot_s", "TPOT s", "{:.3f}"),
    ("throughput_tokens_per_s", "tokens/s", "{:.0f}"),
    ("makespan_s", "makespan s", "{:.0f}"),
    ("preemptions", "preemptions", "{:.0f}"),
    ("recompute_tax", "recomputed", "{:.1%}"),
    ("wall_s", "took s", "{:.1f}"),
)
"""Fields of `PolicyFigures` that a table shows: name, heading, format."""


def share_text(share: float | None) -> str:
    """A share as text, a dash for none.

    >>> share_text(0.8762), share_text(None)
    ('87.6%', '-')
    """
    return "-" if share is None else f"{share:.1%}"


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as HTML."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_table(
    title: str | None, headings: Sequence[str], rows: Iterable[Sequence[str]] = (), *, left: int = 0
) -> Table:
    """A table for the terminal; the first ``left`` columns are aligned left, all others right."""
    table = Table(title=title)
    for number, text in enumerate(headings):
        table.add_column(text, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*row)
    return table
