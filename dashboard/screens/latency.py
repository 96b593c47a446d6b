"""The page *Latency*: how long requests take, lately or as far back as the history goes, and who waits longer than whom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st

from dashboard.charts import figures, heatmaps
from dashboard.charts import latency as latency_charts
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble, read
from dashboard.screens import components, filters, history, prompts
from dashboard.screens.filters import Filters
from dashboard.text import latency as text
from dashboard.text import words
from store import formatting
from store.http_requests import LatenciesView, PartLatency, Percentiles
from store.reading.latencies import PARTED, PARTS_SHOWN, read_latencies
from store.reading.scope import Part, Scope

BINS = 30
_DRAWN, _COMPARED = "latency_drawn", "latency_compared"


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Latency")
    wanted = filters.chosen()
    if wanted.is_live:
        components.live(partial(_live, wanted), live.REFRESH_S)
    else:
        components.live(partial(_recorded, wanted), history.refresh_s(wanted))


def _live(wanted: Filters) -> None:
    """What the controller says; where it says nothing, what the history has."""
    part = filters.part()
    named = {} if part is None else {"part": f"{part.by}:{part.name}"}
    found = components.answered(live.latency(wanted.live_s, BINS, wanted.asked | named))
    if found is not None and (part is not None or found.whole + found.cut):
        _page(wanted, part, found)
    else:
        _recorded(wanted)


def _recorded(wanted: Filters) -> None:
    part = filters.part()
    found = components.from_history(lambda path: _read(path, history.scope(wanted, part)))
    if found is not None and (part is not None or components.any_ended(found.whole + found.cut, found.newest_s)):
        _page(wanted, part, found)


@st.cache_resource(ttl=history.KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> LatenciesView | ArchiveTrouble:
    return read(Path(path), partial(read_latencies, scope=wanted))


def _page(wanted: Filters, part: Part | None, found: LatenciesView) -> None:
    key = (wanted, part, found, components.zone())
    # Figures are rebuilt only when there is something new in them: this runs every second.
    if st.session_state.get(_DRAWN, (None,))[0] != key:
        st.session_state[_DRAWN] = (key, _figures(found))
    _, drawn = st.session_state[_DRAWN]
    st.markdown(text.verdict(found))
    counts = f"{formatting.count(found.whole)} ran to their end, {formatting.count(found.cut)} did not."
    st.caption(f"{history.described(wanted, found.since_s, found.until_s)} {counts}")
    _totals(found.totals)
    narrow, _ = st.columns([1, 2])
    with narrow:
        called = prompts.named(found.parts, Scope(None, wanted.engine_id, wanted.model))
        filters.choose_part(
            {Part(part.by, part.name): named.name for part, named in zip(found.parts, called, strict=True)}
        )
    _charts(found, drawn)
    _comparison(wanted, found, drawn[6])


def _totals(totals: dict[str, Percentiles]) -> None:
    nothing = Percentiles(0.0, 0, None, None, None)
    columns = st.columns(6)
    for at, (name, label, meaning) in enumerate(_LATENCIES):
        found = totals.get(name, nothing)
        columns[2 * at].metric(f"{label}, median", formatting.span(found.p50_s), help=meaning)
        columns[2 * at + 1].metric(f"{label}, P99", formatting.span(found.p99_s), help=meaning)


_LATENCIES = (
    ("ttft", "TTFT", "Time to first token: from the arrival to the first token of the answer"),
    ("ttlt", "TTLT", "Time to last token, also called end-to-end latency, of requests that ran to their end"),
    ("tpot", "TPOT", "Time per output token after the first"),
)


def _figures(found: LatenciesView) -> list[go.Figure]:
    zone, bin_s, span = components.zone(), found.bucket_s, (found.since_s, found.until_s)
    return [
        figures.latency(found.ttft, "TTFT", zone, span),
        figures.latency(found.ttlt, "TTLT", zone, span),
        figures.latency(found.tpot, "TPOT", zone, span),
        heatmaps.heat(found.ttft_heat, bin_s, "seconds", zone, span),
        heatmaps.heat(found.ttlt_heat, bin_s, "seconds", zone, span),
        heatmaps.heat(found.tpot_heat, bin_s, "seconds", zone, span),
        heatmaps.phases(found.phases, zone, span),
    ]


_CHARTS = (
    ("Time to first token", "latency_ttft", ""),
    ("Time to last token", "latency_ttlt", " Without aborted requests."),
    ("Time per output token", "latency_tpot", " After the first."),
)
_HEAT = "Below it the same requests by duration: the darker a cell, the more requests."


def _charts(found: LatenciesView, drawn: Sequence[go.Figure]) -> None:
    per = f"Per {formatting.span(found.bucket_s)}."
    columns = st.columns(3)
    for column, (title, key, note), percentiles, heat in zip(columns, _CHARTS, drawn[:3], drawn[3:6], strict=True):
        with column:
            components.chart(title, percentiles, key, f"{per}{note} {_HEAT}")
            components.plain_chart(heat, f"{key}_heat", f"{title}: how many requests, by time and duration")


def _comparison(wanted: Filters, found: LatenciesView, phases: go.Figure) -> None:
    """Where the time goes, and engines, priorities, tenants, models or clusters side by side."""
    kinds = [kind for kind in text.KINDS if any(part.by == kind for part in found.parts)]
    several = sum(part.by == "engine" for part in found.parts) > 1
    left, right = st.columns(2)
    with left:
        note = "Queue, prefill and decode; together they are the mean TTLT."
        components.chart("Where the time goes", phases, "latency_phases", note)
    with right:
        note = f"The latest {formatting.count(PARTED)} requests of the range; the {PARTS_SHOWN} largest of each kind."
        st.markdown("## Who waits longer", help=note)
        if not kinds:
            st.caption("No request ran to its end in this range.")
            return
        st.session_state.setdefault(_COMPARED, "engine" if several else "tenant" if "tenant" in kinds else kinds[0])
        kind = st.segmented_control(
            "Compare by", kinds, key=_COMPARED, format_func=text.KINDS.__getitem__, label_visibility="collapsed"
        )
        parts = prompts.named(
            (part for part in found.parts if part.by == kind), Scope(None, wanted.engine_id, wanted.model)
        )
        if kind == "engine" and several:
            st.caption(words.plain(text.engines_compared(parts)))
        label = f"Median and 99th percentile of TTFT and TTLT by {kind}"
        components.plain_chart(latency_charts.compared(parts), "latency_compared_chart", label)
    _parts(kind or "engine", parts)


def _parts(kind: str, parts: Sequence[PartLatency]) -> None:
    seconds = {
        "TTFT, median": [part.p50_ttft_s for part in parts],
        "TTFT, P99": [part.p99_ttft_s for part in parts],
        "TTLT, mean": [part.mean_ttlt_s for part in parts],
        "TTLT, median": [part.p50_ttlt_s for part in parts],
        "TTLT, P99": [part.p99_ttlt_s for part in parts],
        "TPOT, median": [part.p50_tpot_s for part in parts],
    }
    st.dataframe(
        {
            text.KINDS[kind]: [part.name for part in parts],
            "Requests": [part.requests for part in parts],
            **{f"{name} (s)": values_s for name, values_s in seconds.items()},
            "Mean output tokens": [part.mean_output_tokens for part in parts],
        },
        key="latency_parts",
        hide_index=True,
        placeholder=formatting.DASH,
        height=min(38 + 35 * max(1, len(parts)), 300),
        column_config={
            "Requests": st.column_config.NumberColumn(format="localized"),
            "Mean output tokens": st.column_config.NumberColumn(format="%.0f"),
            **{f"{name} (s)": st.column_config.NumberColumn(format="%.2f") for name in seconds},
            "TPOT, median (s)": st.column_config.NumberColumn(format="%.3f"),
        },
    )
