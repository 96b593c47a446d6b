"""The page *SQL*: one statement over the history, its answer as table and chart, and what there is to ask about."""

from __future__ import annotations

import time
from pathlib import Path

import streamlit as st

from dashboard.charts import sql_answer
from dashboard.charts.sql_answer import Axes, Kind
from dashboard.data import live, sql_questions
from dashboard.data.sql_questions import Answer, QuestionTrouble, ViewColumns
from dashboard.screens import components, request
from dashboard.text import words
from store import formatting
from store.reading.example_queries import USEFUL_QUERIES

SCHEMA_KEPT_S = 30.0
FIRST_STATEMENT = next(query.statement for query in USEFUL_QUERIES if query.group == "Latency")
_TEXT, _SAVED, _ANSWER = "sql_text", "sql_saved", "sql_answer"
_ADDRESS = "q"
"""The statement's name in the address, so that it can be kept and shared."""
_KEPT_TEXT = "sql_kept_text"
"""What was written, for when the reader comes back: a widget's own state goes with its page."""


def page() -> None:
    """Draw the page; it reads the store, so it also works while the controller is down."""
    st.title("SQL")
    path = live.store_path()
    if path is None:
        components.show(words.no_store_notice())
        return
    schema = _schema(str(path))
    if isinstance(schema, QuestionTrouble):
        components.show(words.archive_notice("absent", schema.detail))
        return
    editor, browser = st.columns([5, 3], gap="medium")
    with editor:
        _editor(path)
        _answered()
    with browser:
        _browser(schema)


@st.cache_resource(ttl=SCHEMA_KEPT_S, max_entries=4, show_spinner=False)
def _schema(path: str) -> tuple[ViewColumns, ...] | QuestionTrouble:
    return sql_questions.read_schema(Path(path))


def _editor(path: Path) -> None:
    st.selectbox(
        "Example queries",
        range(len(USEFUL_QUERIES)),
        index=None,
        key=_SAVED,
        on_change=_take_saved,
        format_func=lambda number: f"{USEFUL_QUERIES[number].group}: {_unmarked(USEFUL_QUERIES[number].title)}",
        placeholder=f"Choose one of {len(USEFUL_QUERIES)}, or write your own below",
    )
    given = st.query_params.get(_ADDRESS)
    opened = given is not None and _TEXT not in st.session_state
    st.session_state.setdefault(_TEXT, given or st.session_state.get(_KEPT_TEXT, FIRST_STATEMENT))
    with st.form("sql_form", border=False):
        statement = st.text_area(
            "Statement",
            key=_TEXT,
            height=230,
            help="One SELECT, DESCRIBE or SHOW in DuckDB's SQL. It runs in a process of its own that can only read the history.",
        )
        run = st.form_submit_button(
            "Run",
            type="primary",
            icon=":material/play_arrow:",
            help="Ctrl+Enter; the statement is then in the address, to be shared",
        )
    st.session_state[_KEPT_TEXT] = statement
    if run or opened:
        st.query_params[_ADDRESS] = statement
        with st.spinner("The query is running …"):
            started_s = time.perf_counter()
            answer = sql_questions.ask(path, statement)
            st.session_state[_ANSWER] = (answer, time.perf_counter() - started_s)


def _take_saved() -> None:
    chosen = st.session_state.get(_SAVED)
    if chosen is not None:
        st.session_state[_TEXT] = st.session_state[_KEPT_TEXT] = USEFUL_QUERIES[chosen].statement
        st.session_state.pop(_ANSWER, None)


def _unmarked(text: str) -> str:
    return text.replace("`", "").replace("*", "")


def _answered() -> None:
    if _ANSWER not in st.session_state:
        st.caption("No statement has been run yet.")
        return
    answer, took_s = st.session_state[_ANSWER]
    if isinstance(answer, QuestionTrouble):
        components.show(words.question_notice(answer))
        return
    rows = answer.shown()
    st.caption(words.answer_size(rows.num_rows, took_s, truncated=answer.truncated))
    table, chart = st.tabs(["Table", "Chart"])
    with table:
        if "request_id" in rows.column_names:
            request.choosable(rows, rows.column("request_id").to_pylist(), key="sql_rows", height="auto")
            st.caption("Select a row to see the whole request.")
        else:
            st.dataframe(rows, key="sql_rows", hide_index=True, placeholder=formatting.DASH, height="auto")
        _downloads(answer)
    with chart:
        _chart(answer)


def _downloads(answer: Answer) -> None:
    left, right, _ = st.columns([1, 1, 3])
    for column, name, content, kind in (
        (left, "CSV", answer.as_csv, "text/csv"),
        (right, "Parquet", answer.as_parquet, "application/vnd.apache.parquet"),
    ):
        column.download_button(
            name,
            content,
            file_name=f"answer.{name.lower()}",
            mime=kind,
            icon=":material/download:",
            on_click="ignore",
            key=f"sql_{name.lower()}",
        )


def _chart(answer: Answer) -> None:
    rows = answer.shown()
    axes = sql_answer.suggested(rows)
    if axes is None:
        st.caption("This answer has nothing to draw: a chart needs two rows and a column of numbers beside the first.")
        return
    names = ",".join(rows.column_names)  # Another answer, other columns: its own widgets.
    across, up, colour, how = st.columns(4)
    x = across.selectbox("X axis", rows.column_names, index=rows.column_names.index(axes.x), key=f"sql_x_{names}")
    y = up.multiselect("Y axis", sql_answer.numbers(rows), default=list(axes.y), key=f"sql_y_{names}")
    named = ["", *sql_answer.categories(rows)]
    by = colour.selectbox(
        "Colour by",
        named,
        index=named.index(axes.by or ""),
        format_func=lambda name: name or "nothing",
        key=f"sql_by_{names}",
    )
    kinds: tuple[Kind, ...] = ("lines", "bars", "points")
    kind: Kind = how.selectbox("Chart type", kinds, index=kinds.index(axes.kind), key=f"sql_kind_{names}")
    if not y:
        st.caption("Choose a column of numbers to draw.")
        return
    figure = sql_answer.answer(rows, Axes(x, tuple(y), kind, by or None))
    components.plain_chart(figure, "sql_chart", "The answer as a chart")
    if rows.num_rows > sql_answer.DRAWN_ROWS:
        st.caption(f"The first {formatting.count(sql_answer.DRAWN_ROWS)} rows are drawn.")


def _browser(schema: tuple[ViewColumns, ...]) -> None:
    st.markdown("## Tables and views")
    if not schema:
        st.caption("The history has no views yet.")
        return
    names = [view.name for view in schema]
    chosen = st.selectbox("View", names, index=names.index("requests") if "requests" in names else 0, key="sql_view")
    view = schema[names.index(chosen)]
    st.caption(words.plain(view.comment))
    st.dataframe(
        {
            "Column": [name for name, _, _ in view.columns],
            "Meaning": [comment for _, _, comment in view.columns],
            "Type": [kind for _, kind, _ in view.columns],
        },
        key="sql_columns",
        hide_index=True,
        height=420,
        row_height=32,
    )
