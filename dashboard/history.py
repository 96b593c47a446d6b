"""The page *History*: what the store has recorded, whether the controller runs or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import streamlit as st

from dashboard import figures, filters, live, words
from dashboard.archive import Archive, ArchiveTrouble, Scope, read_archive
from dashboard.filters import Filters

REFRESH_S = 10.0
"""History becomes visible every few seconds only, and reading it costs more than a live answer."""

KEPT_S = 9.0


def page() -> None:
    """Draw the page; it reads the store, so it also works while the controller is down."""
    st.title("History")
    st.fragment(partial(_recorded, filters.chosen()), run_every=REFRESH_S)()


def _recorded(wanted: Filters) -> None:
    archive = answered(wanted)
    if archive is None:
        return
    _totals(archive)
    if archive.newest_s is None:
        live.show(words.empty_store_notice())
    else:
        st.caption(described(wanted, archive))
        _charts(archive)
    _tables(archive)


def answered(wanted: Filters) -> Archive | None:
    """Read what the filters ask for; or show in words why there is nothing and give None."""
    path = live.store_path()
    if path is None:
        live.show(words.no_store_notice())
        return None
    archive = _read(str(path), scope(wanted))
    if isinstance(archive, ArchiveTrouble):
        live.show(words.archive_notice(archive.kind, archive.detail))
        return None
    return archive


def scope(wanted: Filters) -> Scope:
    """The filters, for the history."""
    return Scope(wanted.span_s, wanted.engine_id, wanted.model)


def described(wanted: Filters, archive: Archive) -> str:
    """Say what is shown: how far back, of which engines, up to when."""
    span = "The whole history" if wanted.span_s is None else f"The last {wanted.range_name} of the history"
    whose = "".join(f", {words.plain(name)}" for name in (wanted.engine_id, wanted.model) if name)
    return f"{span}{whose}, counted back from its newest request, which ended {live.moment(archive.newest_s)}."


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> Archive | ArchiveTrouble:
    return read_archive(Path(path), wanted)


def _totals(archive: Archive) -> None:
    counts = {name: rows for name, _, rows in archive.rows}
    columns = st.columns(5)
    columns[0].metric("Requests", words.count(counts.get("requests")))
    columns[1].metric("Finished", words.count(counts.get("completions")))
    columns[2].metric("Predictions", words.count(counts.get("predictions")))
    columns[3].metric("Preemptions", words.count(counts.get("preemptions")))
    columns[4].metric("Drift events", words.count(counts.get("drift_events")))
    st.caption(f"The whole history in {words.plain(str(live.store_path()))}.")


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
