"""The page *Now*: is all well, what is served, and in which order what waits will be."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import figures, live, words
from dashboard.series import Moment, moments
from dashboard.views import EngineView, QueueRow, QueueView, RecentView, StateView

QUEUE_ROWS = 500
"""So many requests are asked for and shown; the rest is a number."""


def page() -> None:
    """Draw the page; everything on it is live."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.title("Now")
    with right:
        window = st.selectbox("Window", list(live.WINDOWS), key="now_window")
    _live(live.WINDOWS[window])


@st.fragment(run_every=live.REFRESH_S)
def _live(window_s: int) -> None:
    state = live.answered(live.state())
    if state is None:
        return
    engine_id = live.chosen_engine(state)
    for notice in words.state_notices(state, engine_id):
        live.show(notice)
    recent = live.recent(window_s)
    recent_view = recent if isinstance(recent, RecentView) else RecentView()
    snapshots = [point for point in recent_view.snapshots if engine_id in {None, point.engine_id}]
    bins = moments(snapshots, max(1.0, window_s / 120))
    engines = [engine for engine in state.engines if engine_id in {None, engine.engine_id}]
    _figures_of_the_moment(state, engines, bins)
    if not engines:
        return
    _charts(bins)
    queue = live.answered(live.queue(engine_id, QUEUE_ROWS))
    if queue is not None:
        _tables(queue, engines)


def _figures_of_the_moment(state: StateView, engines: Sequence[EngineView], bins: Sequence[Moment]) -> None:
    snapshots = [engine.snapshot for engine in engines if engine.snapshot is not None and engine.connected]
    used = sum(snapshot.kv_blocks_used or 0 for snapshot in snapshots)
    blocks = sum(snapshot.kv_blocks or 0 for snapshot in snapshots)
    reserved = sum(snapshot.reserved_blocks or 0 for snapshot in snapshots)
    last = bins[-1] if bins else None
    controller = state.controller
    columns = st.columns(6)
    policy = words.plain(controller.policy or words.DASH)
    columns[0].metric(
        "In force", words.in_force(engines), help=_mode_help(state), delta=policy, delta_color="off", delta_arrow="off"
    )
    columns[1].metric("Waiting", words.count(sum(s.waiting or 0 for s in snapshots) if snapshots else None))
    columns[2].metric("Running", words.count(sum(s.running or 0 for s in snapshots) if snapshots else None))
    columns[3].metric("KV memory used", words.percent(used / blocks if blocks else None))
    columns[4].metric("Held back for growth", words.percent(reserved / blocks if blocks else None))
    columns[5].metric("Output tokens/s", words.count(last.decode_tokens_per_s if last else None))


def _mode_help(state: StateView) -> str:
    mode = state.controller.mode or ""
    settings = state.controller.settings
    gate = settings.gate if settings else None
    admission = (
        f"Admission looks {words.count(gate.horizon_tokens)} tokens ahead."
        if gate
        else "Admission is the engine's own."
    )
    return f"Asked for: {words.plain(words.MODES.get(mode, mode or 'unknown'))}. {admission}"


def _charts(bins: Sequence[Moment]) -> None:
    zone = live.zone()
    memory, tokens, requests = st.columns(3)
    with memory:
        live.chart("KV memory", figures.kv_memory(bins, zone), "now_memory")
    with tokens:
        live.chart("Throughput", figures.throughput(bins, zone), "now_tokens")
    with requests:
        live.chart("Requests", figures.requests(bins, zone), "now_requests")


def _tables(queue: QueueView, engines: Sequence[EngineView]) -> None:
    waiting = [row for row in queue.rows if row.state == "waiting"]
    running = [row for row in queue.rows if row.state == "running"]
    several = len({row.engine_id for row in queue.rows}) > 1
    total = sum(engine.snapshot.waiting or 0 for engine in engines if engine.connected and engine.snapshot)
    st.markdown("##### Waiting, in the order in which they will be tried")
    _table(waiting, several, "now_waiting", "Nothing waits.")
    if waiting and total > len(waiting):
        st.caption(f"The first {words.count(len(waiting))} are shown; {words.count(total - len(waiting))} more wait.")
    st.markdown("##### Running")
    _table(running, several, "now_running", "Nothing runs.")


def _table(rows: Sequence[QueueRow], several: bool, key: str, nothing: str) -> None:  # noqa: FBT001 - a table has or has not the column
    if not rows:
        st.caption(nothing)
        return
    order = list(_COLUMNS) if several else [name for name in _COLUMNS if name != "engine_id"]
    data = {name: [getattr(row, name) for row in rows] for name in order}
    st.dataframe(
        data, key=key, hide_index=True, column_order=order, column_config=_COLUMNS, height=min(38 + 35 * len(rows), 423)
    )


_NUMBER = st.column_config.NumberColumn
_COLUMNS = {
    "position": _NUMBER("Order", help="Place in the queue; lower is tried first", width="small"),
    "request_id": st.column_config.TextColumn("Request"),
    "engine_id": st.column_config.TextColumn("Engine"),
    "priority": _NUMBER("Class", help="The request's own strict priority; lower is served first", width="small"),
    "age_s": _NUMBER("Age (s)", format="%.1f", help="Time since it arrived"),
    "index_s": _NUMBER(
        "Index (s)", format="%.3f", help="Gittins index of the remaining cost, in engine-seconds; lower runs first"
    ),
    "prompt_tokens": _NUMBER("Prompt (tokens)", format="localized"),
    "attained_tokens": _NUMBER("Attained (tokens)", format="localized", help="Output tokens generated so far"),
    "expected_remaining_tokens": _NUMBER(
        "Expected remaining (tokens)", format="%.0f", help="Mean of what is still to come, given what is attained"
    ),
    "p50_tokens": _NUMBER("Predicted median (tokens)", format="%.0f"),
    "p90_tokens": _NUMBER(
        "Predicted 90 % (tokens)", format="%.0f", help="Nine in ten such answers are at most so long"
    ),
    "cluster": _NUMBER("Cluster", help="Group of like prompts", width="small"),
}
