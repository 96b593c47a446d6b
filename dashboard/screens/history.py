"""The page *History*: what the store has recorded, whether the controller runs or not."""

from __future__ import annotations

import time
from collections import Counter
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
    components.live(partial(_recorded, wanted), refresh_s(wanted))


def refresh_s(wanted: Filters) -> float:
    """How often what the filters ask for is read again."""
    return REFRESH_S if wanted.span_s is not None and wanted.span_s <= LONG_S else LONG_REFRESH_S


def _recorded(wanted: Filters) -> None:
    found = components.from_history(lambda path: _read(path, scope(wanted)))
    if found is None:
        return
    if components.any_ended(len(found.finished), found.newest_s):
        st.caption(described(wanted, found.since_s, found.until_s))
        _in_range(found)
        _charts(found)
    _totals(found)
    _tables(found)


def scope(wanted: Filters, part: Part | None = None) -> Scope:
    """The filters, for the history."""
    return wanted.scope(time.time(), refresh_s(wanted), part)


def described(wanted: Filters, since_s: float, until_s: float) -> str:
    """Say what is shown: requests of which time, of which engines."""
    when = f"from {components.moment(since_s)} to {components.moment(until_s)}"
    if wanted.span_s is not None and wanted.range_name != filters.CUSTOM:
        when = f"in the last {wanted.range_name}"
    elif wanted.span_s is None:
        when = f"in the whole history, {when}"
    chosen = "".join(f", {words.plain(name)}" for name in (wanted.engine_id, wanted.model) if name)
    return f"Requests that ended {when}{chosen}."


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> Traffic | ArchiveTrouble:
    return read_traffic(Path(path), wanted)


def _in_range(found: Traffic) -> None:
    """How many requests ended in the range, and how."""
    ended: Counter[str] = Counter()
    for _, reason, number in found.finished:
        ended[reason] += number
    columns = st.columns(5)
    columns[0].metric("Requests ended", formatting.count(ended.total()))
    columns[1].metric("Per minute", f"{60.0 * ended.total() / max(1.0, found.until_s - found.since_s):,.3g}")
    for column, (reason, label, meaning) in zip(columns[2:], _REASONS, strict=True):
        share = ended[reason] / ended.total() if ended.total() else None
        column.metric(label, formatting.percent(share), help=meaning)


_REASONS = (
    ("stop", "Ran to their end", "The model ended the answer."),
    ("length", "Truncated", "The answer reached `max_tokens`."),
    ("abort", "Aborted", "The client went away, or the request was shed."),
)


def _totals(found: Traffic) -> None:
    st.markdown("## All that is recorded", help="The filters do not apply to these counts.")
    counts = {name: rows for name, _, rows in found.rows}
    columns = st.columns(5)
    columns[0].metric("Requests", formatting.count(counts.get("requests")))
    columns[1].metric("Finished", formatting.count(counts.get("completions")))
    columns[2].metric("Predictions", formatting.count(counts.get("predictions")))
    columns[3].metric("Preemptions", formatting.count(counts.get("preemptions")))
    columns[4].metric("Drift events", formatting.count(counts.get("drift_events")))


def _charts(found: Traffic) -> None:
    zone, bin_s, span = components.zone(), found.bucket_s, (found.since_s, found.until_s)
    per = f"Per {formatting.span(bin_s)}."
    upper, lower = st.columns(2), st.columns(2)
    with upper[0]:
        ended = heatmaps.finished(found.finished, bin_s, zone, span)
        components.chart("Finished requests by reason", ended, "history_requests", per)
    with upper[1]:
        outputs = heatmaps.heat(found.outputs, bin_s, "tokens", zone, span)
        components.chart("Answer lengths", outputs, "history_outputs", f"{per} Tokens generated.")
    with lower[0]:
        prompts = heatmaps.heat(found.prompts, bin_s, "tokens", zone, span)
        components.chart("Prompt lengths", prompts, "history_prompts", f"{per} Tokens.")
    with lower[1]:
        limits = heatmaps.heat(found.limits, bin_s, "tokens", zone, span)
        components.chart(
            "Requested max_tokens", limits, "history_limits", f"{per} The most tokens that a request may generate."
        )


def _tables(found: Traffic) -> None:
    st.caption(f"Tables and views of the history in {words.code(str(live.store_path()))}; *SQL* reads them.")
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
