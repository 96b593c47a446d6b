"""The page *Now*: is all well, what is served, and in which order what waits will be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from dashboard.charts import figures
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble, RecordedLoad, read_recorded_load
from dashboard.data.last_known import SPAN_S, LastKnown, read_last_known
from dashboard.data.series import horizon_s, peak_error
from dashboard.screens import components, filters, glance, history, request
from dashboard.screens.filters import Filters
from dashboard.text import words
from dashboard.text.glance import last_tiles, tiles
from store import formatting
from store.http_api import EngineView, QueueReason, QueueRow, StateView
from store.http_now import NowView
from store.http_requests import LoadPoint, LoadView
from store.reading.scope import Scope
from store.records import Targets
from store.service_levels import targets_in_words

QUEUE_ROWS = 500
"""Largest number of requests fetched and shown; the rest is counted."""

BIN_S = 2.0
"""Steps in which the axes of charts move on."""
BINS = 60
"""Points in a chart over time. The browser rebuilds a chart when it changes, so it changes once per bin only."""


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Now")
    wanted = filters.chosen()
    if _is_charted(wanted):
        st.caption("The charts show the chosen time; all else is of the present.")
    elif not wanted.is_live:
        st.caption("The charts show the last 10 minutes; *History* and *Latency* show more.")
    components.live(partial(_live, wanted), live.REFRESH_S)


def _live(wanted: Filters) -> None:
    state, now = components.answered(live.state()), live.now(wanted.asked)
    if state is None:
        _last_known(wanted)
        return
    engines = wanted.engines(state.engines)
    st.html(glance.STYLE)
    if isinstance(now, NowView):
        _verdict(now, state, engines)
    if state.engines and not engines:
        components.show(words.nothing_chosen_notice())
        return
    if not engines or not isinstance(now, NowView):
        components.answered(now)
        return
    st.html(glance.tiles(tiles(now, live.gain(), words.in_force(engines))))
    st.html(glance.engines(now.engines, now.time_s))
    queue = components.answered(live.queue(engines[0].engine_id if len(engines) == 1 else None, QUEUE_ROWS))
    rows = queue.rows if queue is not None else ()
    rows = tuple(row for row in rows if not wanted.hides(state.engines, row.engine_id))
    with st.container(key="now_lists"):
        waits, happened = st.columns([3, 2])
    with waits:
        _waiting(rows, engines)
    with happened:
        st.markdown("## What happened lately")
        st.html(glance.events(now.events, components.clock))
    load = live.load(wanted.live_s, BINS, wanted.asked)
    load = load if isinstance(load, LoadView) else LoadView(points=(), steps=0, step_s=0.0)
    bins, bin_s = load.points[-BINS:], wanted.live_s / BINS
    _figures_of_the_moment(state, engines, bins)
    lead_s = _lead_s(state, load)
    lead = None if lead_s is None else max(1, round(lead_s / bin_s))
    _charts_of(wanted, Span(bins, lead, wanted.live_s, now.time_s))
    _running(rows)
    _in_words(state, engines, bins, lead, bin_s)


def _verdict(now: NowView, state: StateView, engines: Sequence[EngineView]) -> None:
    st.html(glance.verdict(now.verdict, words.scheduling(engines, state.controller)))


def _last_known(wanted: Filters) -> None:
    """What the history says of the last minutes before the controller went; nothing where no folder is known."""
    path = live.store_path()
    found = None if path is None else _read_last(str(path), wanted.engine_id, wanted.model)
    if isinstance(found, ArchiveTrouble):
        components.show(words.archive_notice(found.kind, found.detail))
    if not isinstance(found, LastKnown):
        return
    st.html(glance.STYLE)
    st.markdown(f"## Last known state, {words.ago(time.time() - found.time_s)}")
    st.caption(f"What the history has of {components.moment(found.time_s)} and the minutes before.")
    st.html(glance.tiles(last_tiles(found)))
    st.html(glance.engines(found.engines, found.time_s, "info"))
    _charts_of(wanted, Span(found.load, None, SPAN_S, found.time_s))
    st.markdown("## What happened last")
    st.html(glance.events(found.events, components.clock))


@st.cache_resource(ttl=live.STEP_S, max_entries=16, show_spinner=False)
def _read_last(path: str, engine_id: str | None, model: str | None) -> LastKnown | ArchiveTrouble | None:
    return read_last_known(Path(path), engine_id, model)


def _figures_of_the_moment(state: StateView, engines: Sequence[EngineView], bins: Sequence[LoadPoint]) -> None:
    snapshots = [engine.snapshot for engine in engines if engine.snapshot is not None and engine.connected]
    used = sum(snapshot.kv_blocks_used for snapshot in snapshots)
    blocks = sum(snapshot.kv_blocks for snapshot in snapshots)
    reserved = min(sum(snapshot.reserved_blocks for snapshot in snapshots), blocks - used)
    last = bins[-1] if bins else None
    columns = st.columns(6)
    policy = words.plain(state.controller.policy)
    columns[0].metric(
        "In force", words.in_force(engines), help=_mode_help(state), delta=policy, delta_color="off", delta_arrow="off"
    )
    columns[1].metric("Waiting", formatting.count(sum(s.waiting for s in snapshots) if snapshots else None))
    columns[2].metric("Running", formatting.count(sum(s.running for s in snapshots) if snapshots else None))
    columns[3].metric("KV memory used", formatting.percent(used / blocks if blocks else None))
    columns[4].metric("Growth reserve", formatting.percent(reserved / blocks if blocks else None))
    columns[5].metric("Output tokens/s", formatting.count(last.decode_tokens_per_s if last and snapshots else None))


def _lead_s(state: StateView, load: LoadView) -> float | None:
    """How far ahead the gate looks, in seconds; None without a gate or before there was a step."""
    gate = state.controller.settings.rules.gate
    return None if gate is None else horizon_s(load, gate.horizon_tokens)


def _in_words(
    state: StateView, engines: Sequence[EngineView], bins: Sequence[LoadPoint], lead: int | None, bin_s: float
) -> None:
    sentences = words.rules(state.controller.settings)
    if lead is not None:
        error = peak_error(bins, lead)
        sentences.append(words.peak_error_sentence(lead * bin_s, error))
    snapshots = [engine.snapshot for engine in engines if engine.snapshot is not None]
    steps = [snapshot.step_tokens for snapshot in snapshots if snapshot.step_tokens is not None]
    chunks = [snapshot.chunk_tokens for snapshot in snapshots if snapshot.chunk_tokens is not None]
    sentences.append(words.step_bounds(steps, chunks))
    st.caption(" ".join(sentence for sentence in sentences if sentence))


def _mode_help(state: StateView) -> str:
    mode, gate = state.controller.mode, state.controller.settings.rules.gate
    admission = (
        f"Admission looks {formatting.count(gate.horizon_tokens)} tokens ahead."
        if gate
        else "Admission is the engine's own."
    )
    return f"Asked for: {words.plain(words.MODES[mode])}. {admission}"


class Span(NamedTuple):
    """What the charts show: the load up to a moment."""

    bins: Sequence[LoadPoint]
    lead: int | None
    """Bins that the gate looks ahead; None: what it predicted is not drawn."""
    span_s: float
    until_s: float


def _is_charted(wanted: Filters) -> bool:
    """Whether the history is read for the charts: longer spans would take seconds."""
    return not wanted.is_live and wanted.span_s is not None and wanted.span_s <= history.LONG_S


def _charts_of(wanted: Filters, lately: Span) -> None:
    """Draw the chosen span of the past, or else what was lately."""
    path = live.store_path()
    found = _read_load(str(path), history.scope(wanted)) if path is not None and _is_charted(wanted) else None
    if isinstance(found, RecordedLoad):
        lately = Span(found.points, None, found.until_s - found.since_s, found.until_s)
    _charts(lately)


@st.cache_resource(ttl=history.KEPT_S, max_entries=16, show_spinner=False)
def _read_load(path: str, scope: Scope) -> RecordedLoad | ArchiveTrouble | None:
    return read_recorded_load(Path(path), scope, BINS)


def _charts(of: Span) -> None:
    zone = components.zone()
    shown = (
        ("KV memory", figures.kv_memory(of.bins, of.lead, zone), "now_memory", _MEMORY),
        ("Throughput", figures.throughput(of.bins, zone), "now_tokens", _TOKENS),
        ("Requests", figures.requests(of.bins, zone), "now_requests", _REQUESTS),
    )
    until_s = BIN_S * (of.until_s // BIN_S)
    for column, (title, figure, key, note) in zip(st.columns(3), shown, strict=True):
        with column:
            if of.bins:
                figures.reach(figure, until_s - of.span_s, until_s, zone)
            components.chart(title, figure, key, note)


def _waiting(rows: Sequence[QueueRow], engines: Sequence[EngineView]) -> None:
    waiting = [row for row in rows if row.state == "waiting"]
    total = sum(engine.snapshot.waiting for engine in engines if engine.connected and engine.snapshot)
    st.markdown("## Next in the queue" if words.in_force(engines) == "on" else "## Waiting, in the engine's own order")
    _table(waiting, _columns(rows), "now_waiting", "Nothing waits.")
    # The counts are slightly older than the rows: only a truncated list shows that there are more.
    if len(rows) >= QUEUE_ROWS and total > len(waiting):
        st.caption(
            f"The first {formatting.count(len(waiting))} are shown; {formatting.count(total - len(waiting))} more wait."
        )


def _running(rows: Sequence[QueueRow]) -> None:
    st.markdown("## Running")
    st.caption(_LENGTHS)
    running = [row for row in rows if row.state == "running"]
    _table(running, [name for name in _columns(rows) if name not in _WAITING_ONLY], "now_running", "Nothing runs.")


def _columns(rows: Sequence[QueueRow]) -> list[str]:
    return [name for name in _COLUMNS if name not in _DISTINGUISHING or len({getattr(row, name) for row in rows}) > 1]


def _table(rows: Sequence[QueueRow], columns: Sequence[str], key: str, nothing: str) -> None:
    if not rows:
        st.caption(nothing)
        return
    data = {name: [_shown(name, getattr(row, name)) for row in rows] for name in columns}
    height = min(38 + 35 * len(rows), 248)
    request.choosable(
        data,
        [row.request_id for row in rows],
        key=key,
        column_config=_COLUMNS,
        height=height,
    )


def _shown(name: str, value: object) -> object:
    if name == "position" and isinstance(value, int):
        return value + 1
    if name == "because":
        return BECAUSE.get(value) if value else None  # type: ignore[call-overload]
    if isinstance(value, Targets):
        return targets_in_words(value)
    return round(value) if name.endswith("_tokens") and isinstance(value, float) else value


BECAUSE: dict[QueueReason, str] = {
    "priority": "priority",
    "target": "its target",
    "short": "short",
    "waited": "has waited",
    "long": "long",
    "arrival": "arrival",
}
_MEMORY = "Reserve: for the growth of running requests. Predicted: the peak predicted for now, a horizon ago."
_TOKENS = "Recompute: again after preemption."
_REQUESTS = "In the queue, and in the batch."
_LENGTHS = (
    "Lengths are in tokens. *Remaining* is expected from here on; *median* and *90%* are of the whole answer, "
    "as predicted on arrival. Select a row to see the whole request."
)
_DISTINGUISHING = {"engine_id", "priority", "service_class", "targets"}
"""Columns that are hidden when all requests have the same value."""
_WAITING_ONLY = {"position", "starts_in_s", "because"}
_NUMBER = st.column_config.NumberColumn
_COLUMNS = {
    "position": _NUMBER("#", help="Place in the queue of its engine: 1 is admitted next", width="small"),
    "request_id": st.column_config.TextColumn("Request", width="medium"),
    "starts_in_s": _NUMBER("Starts (s)", format="%.1f", help="Expected wait for KV memory and a place", width="small"),
    "ends_in_s": _NUMBER("Ends (s)", format="%.1f", help="Expected time to its last token", width="small"),
    "because": st.column_config.TextColumn(
        "Because",
        help="short: below the queue's median cost; waited: longer, and has waited long; long: shorter ones go first; priority, "
        "target: what it was promised; arrival: in order of arrival",
        width="small",
    ),
    "engine_id": st.column_config.TextColumn("Engine", width="small"),
    "service_class": st.column_config.TextColumn("Class", help="Service class", width="small"),
    "targets": st.column_config.TextColumn("Targets", help="The longest times that it is to keep"),
    "priority": _NUMBER("Priority", help="The request's own strict class; lower is served first", width="small"),
    "age_s": _NUMBER("Age (s)", format="%.1f", help="Time since it arrived", width="small"),
    "index_s": _NUMBER(
        "Index (s)",
        format="%.3f",
        help="Mean remaining cost, or its Gittins index, in engine-seconds; lower runs first",
        width="small",
    ),
    "prompt_tokens": _NUMBER("Prompt", format="localized", width="small"),
    "attained_tokens": _NUMBER("Attained", format="localized", help="Output tokens generated so far", width="small"),
    "expected_remaining_tokens": _NUMBER(
        "Remaining",
        format="localized",
        help="Mean of the output tokens still to come, given those attained",
        width="small",
    ),
    "p50_tokens": _NUMBER("Median", format="localized", help="Predicted output tokens", width="small"),
    "p90_tokens": _NUMBER("90%", format="localized", help="90% quantile of the predicted output tokens", width="small"),
    "cluster": _NUMBER("Cluster", help="Group of similar prompts", width="small"),
}
