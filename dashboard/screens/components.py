"""Shared elements of the pages: answers or the reason of their absence, notices, times and charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import plotly.graph_objects as go
import streamlit as st

from dashboard.access import sessions
from dashboard.access.sessions import Person
from dashboard.charts import figures, marks
from dashboard.data import live
from dashboard.data.client import Trouble
from dashboard.text import words
from store import formatting

Value = TypeVar("Value")


def person() -> Person:
    """Whoever looks at this page; without a session that still holds the page ends here."""
    claims = st.user.to_dict() if sessions.login() == "oidc" else {}
    found = sessions.current(st.context.cookies.get(sessions.COOKIE), claims)
    if found is None and sessions.login() == "oidc":
        _introduce(claims)
        st.stop()
    if found is None:
        st.warning(
            "Nobody is logged in here: load this page again. It is served by `sagesched dashboard`.",
            icon=":material/lock:",
        )
        st.stop()
    return found


def _introduce(claims: Mapping[str, object]) -> None:
    """Offer the provider's login, or say that whoever logged in may not look."""
    st.title("SageSched")
    if not claims.get("is_logged_in"):
        st.button("Log in", type="primary", key="log_in", on_click=st.login)
        return
    email = words.plain(str(claims.get("email", "somebody without an address")))
    st.warning(f"{email} may not look here, or its provider does not say that the address is verified.")
    log_out()


def log_out() -> None:
    """Offer to end the session."""
    if sessions.login() == "oidc":
        st.button("Log out", key="log_out", on_click=st.logout)
    else:
        st.html('<a href="/logout" target="_self" style="color: inherit">Log out</a>')


def answered(answer: Value | Trouble) -> Value | None:
    """Give the answer; or show the trouble in words and give None."""
    if isinstance(answer, Trouble):
        show(words.trouble_notice(answer, live.addresses().api_url))
        return None
    return answer


def show(notice: words.Notice) -> None:
    """Show a notice in the colour of its level."""
    boxes: dict[str, tuple[Callable[..., object], str]] = {
        "error": (st.error, ":material/error:"),
        "warning": (st.warning, ":material/warning:"),
        "info": (st.info, ":material/info:"),
    }
    box, icon = boxes[notice.level]
    box(f"**{notice.title}**  \n{notice.text}", icon=icon)


def moment(time_s: float | None) -> str:
    """Write a moment in the browser's time zone."""
    if time_s is None:
        return formatting.DASH
    return f"{datetime.fromtimestamp(time_s, UTC).astimezone(zone()):%Y-%m-%d %H:%M:%S}"


def clock(time_s: float) -> str:
    """Write the time of a moment in the browser's time zone, with the day if that is not today."""
    at, today = datetime.fromtimestamp(time_s, zone()), datetime.now(zone()).date()
    return f"{at:%H:%M:%S}" if at.date() == today else f"{at:%Y-%m-%d %H:%M:%S}"


def zone() -> tzinfo:
    """Give the browser's time zone; UTC where it is not known."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def plain_chart(figure: go.Figure, key: str, label: str) -> None:
    """Show a chart without a title of its own; ``label`` says what it is to those who cannot see it."""
    marks.mark(figure, live.events(), zone())
    st.plotly_chart(figure, key=key, config=figures.CONFIG, theme="streamlit", alt=label)


def chart(title: str, figure: go.Figure, key: str, note: str | None = None) -> None:
    """Show a titled chart; ``key`` keeps it in place from one drawing to the next."""
    st.markdown(f"##### {title}")
    if note:
        st.caption(note)
    plain_chart(figure, key, f"{title}. {note}" if note else title)
