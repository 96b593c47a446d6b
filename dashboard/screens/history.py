"""The page *History*: what the store has recorded, whether the controller runs or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import streamlit as st

from dashboard.charts import heatmaps
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble, Traffic, read_traffic
from dashboard.screens import components, filters
from dashboard.screens.filters import Filters
from dashboard.text import words
from store import formatting
from store.reading.scope import Part, Scope

REFRESH_S = 10.0
"""History becomes visible every few seconds only, and reading it costs more than a live answer."""
LONG_REFRESH_S = 60.0
"""A long history is read less often: it costs more, and a minute of it is less to be seen."""
LONG_S = 6 * 3600.0
KEPT_S = 9.0


def page() -> None:
    """Draw the page; it reads the store, so it also works while the controller is down."""
    st.title("History")
    wanted = filters.chosen()
    st.fragment(partial(_recorded, wanted), run_every=refresh_s(wanted))()


def refresh_s(wanted: Filters) -> float:
    """How often what the filters ask for is read again."""
    return REFRESH_S if wanted.span_s is not None and wanted.span_s <= LONG_S else LONG_REFRESH_S


def _recorded(wanted: Filters) -> None:
    path = live.store_path()
    if path is None:
        components.show(words.no_store_notice())
        return
    found = _read(str(path), scope(wanted))
    if isinstance(found, ArchiveTrouble):
        components.show(words.archive_notice(found.kind, found.detail))
        return
    _totals(found)
    if found.newest_s is None:
        components.show(words.empty_store_notice())
    else:
        st.caption(described(wanted, found.newest_s))
        _charts(found)
    _tables(found)


def scope(wanted: Filters, part: Part | None = None) -> Scope:
    """The filters, for the history."""
    return Scope(wanted.span_s, wanted.engine_id, wanted.model, part)


def described(wanted: Filters, newest_s: float | None) -> str:
    """Say what is shown: how far back, of which engines, up to when."""
    span = "The whole history" if wanted.span_s is None else f"The last {wanted.range_name} of the history"
    whose = "".join(f", {words.plain(name)}" for name in (wanted.engine_id, wanted.model) if name)
    return f"{span}{whose}, counted back from its newest request, which ended {components.moment(newest_s)}."


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> Traffic | ArchiveTrouble:
    return read_traffic(Path(path), wanted)


def _totals(found: Traffic) -> None:
    counts = {name: rows for name, _, rows in found.rows}
    columns = st.columns(5)
    columns[0].metric("Requests", formatting.count(counts.get("requests")))
    columns[1].metric("Finished", formatting.count(counts.get("completions")))
    columns[2].metric("Predictions", formatting.count(counts.get("predictions")))
    columns[3].metric("Preemptions", formatting.count(counts.get("preemptions")))
    columns[4].metric("Drift events", formatting.count(counts.get("drift_events")))
    st.caption(f"The whole history in {words.plain(str(live.store_path()))}.")


def _charts(found: Traffic) -> None:
    zone, bin_s = components.zone(), found.bucket_s
    per = f"Per {formatting.span(bin_s)}."
    upper, lower = st.columns(2), st.columns(2)
    with upper[0]:
        ended = heatmaps.finished(found.finished, bin_s, zone)
        components.chart("Finished requests by reason", ended, "history_requests", per)
    with upper[1]:
        outputs = heatmaps.heat(found.outputs, bin_s, "tokens", zone)
        components.chart("Answer lengths", outputs, "history_outputs", f"{per} Tokens generated.")
    with lower[0]:
        prompts = heatmaps.heat(found.prompts, bin_s, "tokens", zone)
        components.chart("Prompt lengths", prompts, "history_prompts", f"{per} Tokens.")
    with lower[1]:
        limits = heatmaps.heat(found.limits, bin_s, "tokens", zone)
        components.chart(
            "Limits asked for", limits, "history_limits", f"{per} `max_tokens`: the most that may be generated."
        )


def _tables(found: Traffic) -> None:
    st.markdown("##### Tables and views")
    st.dataframe(
        {
            "view": [name for name, _, _ in found.rows],
            "rows": [rows for _, _, rows in found.rows],
            "holds": [comment for _, comment, _ in found.rows],
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
