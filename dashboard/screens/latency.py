"""The page *Latency*: how long requests take, lately or as far back as the history goes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st

from dashboard.charts import figures, heatmaps
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble, read
from dashboard.screens import components, filters, history
from dashboard.screens.filters import Filters
from dashboard.text import words
from store import formatting
from store.http_requests import LatenciesView, PartLatency
from store.reading.latencies import PARTED, PARTS_SHOWN, read_latencies
from store.reading.scope import Part, Scope

BINS = 30
_DRAWN = "latency_drawn"


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Latency")
    wanted = filters.chosen()
    if wanted.is_live:
        _live(wanted)
    else:
        st.fragment(partial(_recorded, wanted), run_every=history.refresh_s(wanted))()


@st.fragment(run_every=live.REFRESH_S)
def _live(wanted: Filters) -> None:
    part = filters.part()
    named = {} if part is None else {"part": f"{part.by}:{part.name}"}
    found = components.answered(live.latency(wanted.live_s, BINS, wanted.asked | named))
    if found is None:
        return
    key = (wanted, part, found, components.zone())
    # Figures are rebuilt only when there is something new in them: this runs every second.
    if st.session_state.get(_DRAWN, (None,))[0] != key:
        st.session_state[_DRAWN] = (key, _figures(found))
    _, drawn = st.session_state[_DRAWN]
    st.caption(f"Requests that ended within the last {wanted.range_name}. {_counts(found)}")
    _page(found, drawn)


def _recorded(wanted: Filters) -> None:
    path = live.store_path()
    if path is None:
        components.show(words.no_store_notice())
        return
    found = _read(str(path), history.scope(wanted, filters.part()))
    if isinstance(found, ArchiveTrouble):
        components.show(words.archive_notice(found.kind, found.detail))
        return
    if found.newest_s is None:
        components.show(words.empty_store_notice())
        return
    st.caption(f"{history.described(wanted, found.newest_s)} {_counts(found)}")
    _page(found, _figures(found))


@st.cache_resource(ttl=history.KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> LatenciesView | ArchiveTrouble:
    return read(Path(path), partial(read_latencies, scope=wanted))


def _counts(found: LatenciesView) -> str:
    return f"{formatting.count(found.whole)} ran to their end, {formatting.count(found.cut)} did not."


def _figures(found: LatenciesView) -> list[go.Figure]:
    zone, bin_s = components.zone(), found.bucket_s
    return [
        figures.latency(found.ttft, "TTFT", zone),
        figures.latency(found.ttlt, "TTLT", zone),
        figures.latency(found.tpot, "TPOT", zone),
        heatmaps.heat(found.ttft_heat, bin_s, "seconds", zone),
        heatmaps.heat(found.ttlt_heat, bin_s, "seconds", zone),
        heatmaps.heat(found.tpot_heat, bin_s, "seconds", zone),
        heatmaps.phases(found.phases, zone),
    ]


_CHARTS = (
    ("Time to first token", "latency_ttft", ""),
    ("Time to last token", "latency_ttlt", " Without aborted requests."),
    ("Time per output token", "latency_tpot", " After the first."),
)


def _page(found: LatenciesView, drawn: Sequence[go.Figure]) -> None:
    narrow, _ = st.columns([1, 2])
    with narrow:
        filters.choose_part([Part(part.by, part.name) for part in found.parts])
    per = f"Per {formatting.span(found.bucket_s)}."
    columns = st.columns(3)
    for column, (title, key, note), percentiles, heat in zip(columns, _CHARTS, drawn[:3], drawn[3:6], strict=True):
        with column:
            components.chart(title, percentiles, key, f"{per}{note}")
            components.plain_chart(heat, f"{key}_heat", f"{title}: how many requests, by time and duration")
    st.caption("Below each the same requests counted by duration: the stronger a cell, the more.")
    left, right = st.columns([1, 2])
    with left:
        components.chart(
            "Where the time goes", drawn[6], "latency_phases", "Queue, prefill, decode: together the mean TTLT."
        )
    with right:
        _parts(found.parts)


def _parts(parts: Sequence[PartLatency]) -> None:
    st.markdown("##### By class, tenant, model and cluster")
    st.caption(
        f"Of the latest {formatting.count(PARTED)} requests of the range; the {PARTS_SHOWN} largest of each kind."
    )
    if not parts:
        st.caption("No request ran to its end in this range.")
        return
    st.dataframe(
        {
            "By": [part.by for part in parts],
            "Is": [part.name for part in parts],
            "Requests": [part.requests for part in parts],
            "Median TTFT (s)": [part.p50_ttft_s for part in parts],
            "Mean TTLT (s)": [part.mean_ttlt_s for part in parts],
            "Median TTLT (s)": [part.p50_ttlt_s for part in parts],
            "99% TTLT (s)": [part.p99_ttlt_s for part in parts],
            "Mean output": [part.mean_output_tokens for part in parts],
        },
        key="latency_parts",
        hide_index=True,
        placeholder=formatting.DASH,
        height=min(38 + 35 * len(parts), 300),
        column_config={
            **{
                name: st.column_config.NumberColumn(format="%.2f")
                for name in ("Median TTFT (s)", "Mean TTLT (s)", "Median TTLT (s)", "99% TTLT (s)")
            },
            "Mean output": st.column_config.NumberColumn(format="%.0f", help="Tokens"),
        },
    )
