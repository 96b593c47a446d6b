"""The page *Settings and health*: the mode and its switch, engines, what was dropped, errors, settings, doctor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.data import archive, live
from dashboard.data.archive import ArchiveTrouble
from dashboard.data.client import Trouble
from dashboard.screens import components, filters
from dashboard.screens.filters import Filters
from dashboard.text import notices, words
from dashboard.text import settings as text
from store import formatting
from store.http_api import DoctorView, EncoderCounts, EngineView, HealthView, StateView
from store.http_now import NowView

HISTORY_KEPT_S = 5.0
REFRESH_S = 5.0
SHOWN = 200
_DOCTOR, _SWITCHED = "settings_doctor", "settings_switched"
MODES = ("off", "shadow", "on")


def page() -> None:
    """Draw the page."""
    st.title("Settings and health")
    _mode()
    components.live(partial(_live, filters.chosen()), REFRESH_S)
    _doctor()


def _mode() -> None:
    state = live.state()
    if isinstance(state, Trouble):
        return
    now = state.controller.mode
    st.markdown(f"Requested mode: **{words.plain(words.MODES[now])}**")
    switched = st.session_state.pop(_SWITCHED, None)
    if switched:
        st.toast(f"Mode {switched}", icon=":material/check_circle:")
    with st.expander("Switch the mode of all engines", icon=":material/swap_vert:", key=f"settings_switch_{now}"):
        _switch(now)


def _switch(now: str) -> None:
    """A mode, a reason and a confirmation; only with all three the button is alive."""
    person = components.person()
    if person.role != "switch":
        st.info(
            "This login can view and not switch: log in with the token that can, `http.token`.", icon=":material/lock:"
        )
        return
    st.caption("Takes effect within a second on every engine that is connected, and is recorded with its reason.")
    others = [mode for mode in MODES if mode != now]
    wanted = st.radio("New mode", others, format_func=lambda mode: words.MODES[mode], key=f"settings_wanted_{now}")
    reason = st.text_input("Reason", max_chars=500, key=f"settings_reason_{now}")
    sure = st.checkbox(words.mode_consequence(wanted), key=f"settings_sure_{now}_{wanted}")
    if st.button(f"Switch to {wanted}", type="primary", disabled=not (sure and reason.strip()), key="settings_do"):
        answer = live.client().set_mode(wanted, reason.strip(), person.name)
        if isinstance(answer, Trouble):
            components.show(words.trouble_notice(answer, live.addresses().api_url))
            return
        live.forget()
        st.session_state[_SWITCHED] = wanted
        st.rerun()


def _live(wanted: Filters) -> None:
    state = components.answered(live.state())
    health = live.health()
    if state is not None:
        _state(state, wanted)
    if isinstance(health, HealthView):
        _encoder(health.encoder)
        _recent_warnings(health)
    elif state is not None:
        components.answered(health)
    _history(wanted)
    _switches()
    if isinstance(health, HealthView):
        _configuration(health, state)


def _state(state: StateView, wanted: Filters) -> None:
    engines = wanted.engines(state.engines)
    now = live.now()
    for notice in notices.finding_notices(now.verdict.findings) if isinstance(now, NowView) else ():
        components.show(notice)
    snapshots = [engine.snapshot for engine in engines if engine.snapshot]
    columns = st.columns(5)
    columns[0].metric("Engines connected", f"{sum(engine.connected for engine in engines)} of {len(engines)}")
    columns[1].metric("Messages dropped", formatting.count(sum(snapshot.messages_dropped for snapshot in snapshots)))
    columns[2].metric(
        "Errors in engines",
        formatting.count(sum(snapshot.policy_errors for snapshot in snapshots)),
        help="Errors of SageSched that were caught inside the engines since they started",
    )
    columns[3].metric(
        "Records to write",
        formatting.count(state.store.queued),
        help="Committed within about a second; some hundreds are normal under load",
    )
    columns[4].metric(
        "Dropped records",
        formatting.count(state.store.dropped + state.store.refused),
        help="By the history's writer, under pressure",
    )
    if engines:
        st.markdown("## Engines")
        now_s = state.controller.now_s
        st.dataframe(
            [_engine(engine, now_s) for engine in engines],
            key="settings_engines",
            hide_index=True,
            placeholder=formatting.DASH,
            height="content",
        )


def _engine(engine: EngineView, now_s: float) -> dict[str, Any]:
    snapshot = engine.snapshot
    return {
        "Engine": engine.engine_id,
        "Connected": "yes" if engine.connected else "no",
        "Last message (s ago)": round(now_s - engine.last_seen_s, 1),
        "In force": snapshot.fallback or snapshot.mode if snapshot else None,
        "Model": engine.model,
        "Version": f"{engine.engine} {engine.engine_version}",
        "Check of vLLM": engine.contract,
        "KV blocks": engine.kv_blocks,
        "max_num_seqs": engine.max_num_seqs,
        "Index tables": snapshot.tables_held if snapshot else None,
        "Dropped": snapshot.messages_dropped if snapshot else None,
        "Errors": snapshot.policy_errors if snapshot else None,
    }


def _encoder(encoder: EncoderCounts | None) -> None:
    """What the semantic encoder keeps up with, where there is one."""
    if encoder is None:
        return
    st.markdown("## Semantic encoder")
    columns = st.columns(4)
    columns[0].metric("Prompts read", formatting.count(encoder.encoded))
    columns[1].metric("Prompts waiting", formatting.count(encoder.waiting))
    columns[2].metric(
        "Prompts left out",
        formatting.count(encoder.dropped),
        help="It did not keep up; their lengths are predicted without it",
    )
    columns[3].metric("Failures", formatting.count(encoder.errors), help="To load it, or of a batch of prompts")


def _recent_warnings(health: HealthView) -> None:
    st.markdown("## Latest warnings and errors of the controller")
    if not health.recent_warnings:
        st.caption("None since it started.")
        return
    rows = [
        {
            "When": components.moment(warning.time_s),
            "Level": warning.level.lower(),
            "From": warning.logger,
            "What": warning.text,
        }
        for warning in health.recent_warnings[:SHOWN]
    ]
    st.dataframe(
        rows,
        key="settings_warnings",
        hide_index=True,
        height=min(38 + 35 * len(rows), 300),
        column_config={"What": st.column_config.TextColumn(width="large")},
    )


def _history(wanted: Filters) -> None:
    st.markdown("## Settings of the engines, and why they changed")
    path = live.store_path()
    if path is None:
        components.show(words.no_store_notice())
        return
    found = _settings_rows(str(path), wanted.engine_id, wanted.model)
    if isinstance(found, ArchiveTrouble):
        components.show(words.archive_notice(found.kind, found.detail))
        return
    if not found:
        st.caption("None is recorded yet.")
        return
    st.caption("The operator switches the mode; margin and boost are tuned to each engine. Newest first.")
    rows = [{"When": components.moment(row.pop("time_s"))} | row for row in (dict(row) for row in found)]
    st.dataframe(
        rows,
        key="settings_history",
        hide_index=True,
        placeholder=formatting.DASH,
        height=min(38 + 35 * len(rows), 390),
        column_config={
            "Why": st.column_config.TextColumn(width="large"),
            "Margin": st.column_config.NumberColumn(
                format="%.2f", help="Factor on the growth for which KV memory is reserved"
            ),
            "Boost (1/s)": st.column_config.NumberColumn(
                format="%.3g", help="How fast waiting moves a request forward"
            ),
            "Horizon": st.column_config.NumberColumn(
                help="Tokens that running requests are expected to grow by, for which KV memory is reserved"
            ),
        },
    )


@st.cache_data(ttl=HISTORY_KEPT_S, max_entries=16, show_spinner=False)
def _settings_rows(path: str, engine_id: str | None, model: str | None) -> list[dict[str, Any]] | ArchiveTrouble:
    return archive.read_settings(Path(path), engine_id, model, SHOWN)


def _switches() -> None:
    path = live.store_path()
    found = _switch_rows(str(path)) if path is not None else []
    if isinstance(found, ArchiveTrouble) or not found:
        return
    st.markdown("## Mode switches")
    st.caption("Over HTTP, from this page and from the command line; names are as given, not verified. Newest first.")
    st.dataframe(
        [
            {"When": components.moment(row["time_s"])} | {name: row[name] for name in row if name != "time_s"}
            for row in found
        ],
        key="settings_switches",
        hide_index=True,
        height=min(38 + 35 * len(found), 390),
        column_config={"Why": st.column_config.TextColumn(width="large")},
    )


@st.cache_data(ttl=HISTORY_KEPT_S, max_entries=4, show_spinner=False)
def _switch_rows(path: str) -> list[dict[str, Any]] | ArchiveTrouble:
    return archive.read_switches(Path(path), SHOWN)


def _configuration(health: HealthView, state: StateView | None) -> None:
    with st.expander("Configuration and versions", icon=":material/tune:"):
        st.caption(
            "*In force* is what holds now: after a switch of the mode, and where a value is tuned or the default."
        )
        st.dataframe(
            {
                "Setting": [setting.key for setting in health.configuration],
                "Configured": [text.configured(setting.value) for setting in health.configuration],
                "In force": [text.in_force(setting, state) for setting in health.configuration],
                "Meaning": [setting.meaning for setting in health.configuration],
            },
            key="settings_configuration",
            hide_index=True,
            height=500,
            row_height=54,  # Two lines: long meanings are wrapped.
            column_config={"Meaning": st.column_config.TextColumn(width="large")},
        )
        versions = text.versions(health.versions, () if state is None else state.engines)
        st.dataframe(
            {"Of": list(versions), "Version": list(versions.values())},
            key="settings_versions",
            hide_index=True,
            height="content",
        )


def _doctor() -> None:
    st.markdown("## Doctor")
    if st.button("Examine the installation", icon=":material/stethoscope:", key="settings_examine"):
        with st.spinner("Examining; this can take some seconds …"):
            st.session_state[_DOCTOR] = live.client().doctor()
    found = st.session_state.get(_DOCTOR)
    if found is None:
        st.caption("The same checks as `sagesched doctor`, as the controller's own process finds them.")
    elif isinstance(found, Trouble):
        components.show(words.trouble_notice(found, live.addresses().api_url))
    else:
        _findings(found)


def _findings(view: DoctorView) -> None:
    icons = {
        "ok": ":green[:material/check_circle:]",
        "note": ":blue[:material/info:]",
        "wrong": ":red[:material/error:]",
    }
    wrong = sum(finding.state == "wrong" for finding in view.findings)
    notes = sum(finding.state == "note" for finding in view.findings)
    said = f"{wrong} to put right" if wrong else f"{notes} to note, nothing to put right" if notes else "all is well"
    st.caption(f"{components.moment(view.time_s)}: {said}.")
    for finding in view.findings:
        remedy = f"  \n→ {words.plain(finding.remedy)}" if finding.remedy else ""
        icon = icons.get(finding.state, "")
        st.markdown(f"{icon} **{words.plain(finding.name)}**: {words.plain(finding.text)}{remedy}")
