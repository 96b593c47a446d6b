"""The page *History*: what the store has recorded, whether the controller runs or not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from dashboard import figures, live, words
from dashboard.archive import Archive, ArchiveTrouble, read_archive

REFRESH_S = 10.0
"""History becomes visible every few seconds only, and reading it costs more than a live answer."""

KEPT_S = 5.0

RANGES = {"1 hour": 3600.0, "6 hours": 21_600.0, "24 hours": 86_400.0, "7 days": 604_800.0, "all": None}


def page() -> None:
    """Draw the page; it reads the store, so it also works while the controller is down."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.title("History")
    with right:
        chosen = st.selectbox("Last", list(RANGES), key="history_range", help="Counted back from the newest request")
    _recorded(RANGES[chosen])


@st.fragment(run_every=REFRESH_S)
def _recorded(span_s: float | None) -> None:
    path = live.store_path()
    if path is None:
        live.show(words.no_store_notice())
        return
    archive = _read(str(path), span_s)
    if isinstance(archive, ArchiveTrouble):
        live.show(words.archive_notice(archive.kind, archive.detail))
        return
    _totals(archive, path)
    if archive.newest_s is None:
        live.show(words.empty_store_notice())
    else:
        _charts(archive)
    _tables(archive)


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner=False)
def _read(path: str, span_s: float | None) -> Archive | ArchiveTrouble:
    return read_archive(Path(path), span_s)


def _totals(archive: Archive, path: Path) -> None:
    counts = {name: rows for name, _, rows in archive.rows}
    columns = st.columns(5)
    columns[0].metric("Requests", words.count(counts.get("requests")))
    columns[1].metric("Finished", words.count(counts.get("completions")))
    columns[2].metric("Predictions", words.count(counts.get("predictions")))
    columns[3].metric("Preemptions", words.count(counts.get("preemptions")))
    columns[4].metric("Drift events", words.count(counts.get("drift_events")))
    newest = ""
    if archive.newest_s is not None:
        moment = datetime.fromtimestamp(archive.newest_s, UTC).astimezone(live.zone())
        newest = f" The newest request ended {moment:%Y-%m-%d %H:%M:%S} ({words.plain(str(live.zone()))})."
    st.caption(f"Whole history in {words.plain(str(path))}.{newest}")


def _charts(archive: Archive) -> None:
    zone = live.zone()
    per = f"Per {words.span(archive.bucket_s)}."
    upper, lower = st.columns(2), st.columns(2)
    with upper[0]:
        live.chart(
            "Finished requests", figures.finished(archive.finished, archive.bucket_s, zone), "history_requests", per
        )
    with upper[1]:
        live.chart("Time to last token", figures.latency(archive.ttlt, "TTLT", zone), "history_ttlt", per)
    with lower[0]:
        live.chart("Time to first token", figures.latency(archive.ttft, "TTFT", zone), "history_ttft", per)
    with lower[1]:
        live.chart("Coverage of predictions", figures.coverage(archive.coverage, zone), "history_coverage", per)


def _tables(archive: Archive) -> None:
    st.markdown("##### Tables and views")
    st.dataframe(
        {
            "view": [name for name, _, _ in archive.rows],
            "rows": [rows for _, _, rows in archive.rows],
            "holds": [comment for _, comment, _ in archive.rows],
        },
        key="history_tables",
        hide_index=True,
        column_config={
            "view": st.column_config.TextColumn("View", width="small"),
            "rows": st.column_config.NumberColumn("Rows", format="localized", width="small"),
            "holds": st.column_config.TextColumn("Holds", width="large"),
        },
        height="content",
    )
