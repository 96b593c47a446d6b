"""The application that ``python -m dashboard`` starts, behind `dashboard.access.gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import streamlit as st

from dashboard.access import sessions
from dashboard.access.sessions import Person
from dashboard.access.settings import TOKEN
from dashboard.data import live
from dashboard.data.client import Trouble
from dashboard.screens import (
    components,
    drawing,
    filters,
    gain,
    glossary,
    history,
    latency,
    now,
    predictions,
    prompts,
    request,
    service,
    settings,
    sql,
)
from dashboard.text import words
from store import formatting
from store.http_now import NowView
from store.rules import Level

_ICON = Path(__file__).with_name("icon.png")
_STYLE = Path(__file__).with_name("style.css")
_BADGES: dict[Level, tuple[str, Literal["green", "orange", "red", "blue"]]] = {
    "green": (":material/check_circle:", "green"),
    "info": (":material/info:", "blue"),
    "amber": (":material/warning:", "orange"),
    "red": (":material/error:", "red"),
}
"""The verdict, on every page."""
_WITHOUT_CHARTS = {"SQL", "Settings and health", "Glossary"}


def main() -> None:
    """Set up the page, draw the parts shared by all pages, and run the chosen one."""
    st.set_page_config(page_title="SageSched", page_icon=str(_ICON), layout="wide")
    st.html(_STYLE)
    st.logo(str(_ICON), size="large")
    person = components.person()
    _require_login_for_prompts()
    filters.keep()
    pages = {
        "Live": [
            st.Page(now.page, title="Now", icon=":material/monitor_heart:", default=True),
            st.Page(latency.page, title="Latency", icon=":material/timer:", url_path="latency"),
            st.Page(service.page, title="Service", icon=":material/verified:", url_path="service"),
            st.Page(gain.page, title="Gain", icon=":material/trending_up:", url_path="gain"),
            st.Page(predictions.page, title="Predictions", icon=":material/query_stats:", url_path="predictions"),
        ],
        "Recorded": [
            st.Page(prompts.page, title="Prompts", icon=":material/category:", url_path="prompts"),
            request.link(),
            st.Page(history.page, title="History", icon=":material/history:", url_path="history"),
            st.Page(sql.page, title="SQL", icon=":material/database:", url_path="sql"),
        ],
        "Controller": [
            st.Page(settings.page, title="Settings and health", icon=":material/settings:", url_path="settings"),
            st.Page(glossary.page, title="Glossary", icon=":material/menu_book:", url_path="glossary"),
        ],
    }
    chosen = st.navigation(pages)
    if chosen.title not in _WITHOUT_CHARTS:
        _fetch_charting()
    with st.sidebar:
        _health()
        filters.draw(components.zone())
        filters.pause()
        _logged_in(person)
    chosen.run()


def _require_login_for_prompts() -> None:
    """Show nothing without a login where the history holds prompts: anybody on this machine could read them here."""
    if sessions.login() != "none" or not live.stores_prompts():
        return
    text = f"Prompts are stored, and this dashboard has no login: set `{TOKEN}` for it and for the controller."
    st.error(text, icon=":material/lock:")
    st.stop()


def _logged_in(person: Person) -> None:
    if sessions.login() != "none":
        role = "can view and switch modes" if person.role == "switch" else "can view"
        st.caption(f"Logged in{f' as {words.plain(person.name)}' if person.name else ''}: {role}")
        components.log_out()


def _fetch_charting() -> None:
    with st.container(key="charting"):
        drawing.prepare()


@st.fragment(run_every=live.REFRESH_S)
def _health() -> None:
    components.person()
    st.caption(components.updated())
    state = live.state()
    if isinstance(state, Trouble):
        st.badge("controller not reachable", icon=":material/cloud_off:", color="red")
        st.caption(words.code(live.addresses().api_url))
        return
    now = live.now()
    if isinstance(now, NowView):
        icon, colour = _BADGES[now.verdict.level]
        st.badge(words.plain(now.verdict.text), icon=icon, color=colour)
    known = [engine for engine in state.engines if engine.gone != "left"]
    connected = sum(engine.connected for engine in known)
    whole = connected == len(known) > 0
    st.badge(
        f"{connected} of {len(known)} engines connected" if known else "no engine connected",
        icon=":material/memory:",
        color="green" if whole else "orange",
    )
    in_force = words.in_force(state.engines)
    if in_force == "fallback":
        st.badge("fallback: FCFS", icon=":material/warning:", color="orange")
    elif in_force != words.NO_ENGINE:
        st.badge(f"mode {words.plain(in_force)}", icon=":material/swap_vert:", color="blue")
    controller = state.controller
    uptime_s = controller.now_s - controller.started_s
    st.caption(f"Version {words.plain(controller.version)}, up {formatting.span(uptime_s)}")


if __name__ == "__main__":
    main()
