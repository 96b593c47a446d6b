"""Shared elements of the pages: answers or the reason of their absence, notices, times and charts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import plotly.graph_objects as go
import streamlit as st

from dashboard.access import sessions
from dashboard.access.sessions import Person
from dashboard.charts import marks
from dashboard.data import live as live_answers
from dashboard.data.archive import ArchiveTrouble
from dashboard.data.client import Trouble
from dashboard.screens import drawing, filters
from dashboard.text import words
from store import formatting

Value = TypeVar("Value")
_DRAWN = "drawn_s"
"""When the page was drawn last, in the session."""


def live(draw: Callable[[], None], every_s: float | None) -> None:
    """Draw a part of the page, and again every ``every_s`` seconds unless that is None or the reader paused it."""

    def drawn() -> None:
        person()  # Nothing is drawn for a session that has ended since.
        draw()
        st.session_state[_DRAWN] = time.monotonic()

    st.fragment(drawn, run_every=None if filters.paused() else every_s)()


def updated() -> str:
    """Say how old the page is."""
    drawn_s = st.session_state.get(_DRAWN)
    if drawn_s is None:
        return ""
    age_s = time.monotonic() - drawn_s
    age = f"{age_s:.0f} s" if age_s < 60.0 else formatting.span(age_s)
    return f"Paused: updated {age} ago" if filters.paused() else f"Updated {age} ago"


def from_history(read: Callable[[str], Value | ArchiveTrouble]) -> Value | None:
    """Give what is read from the folder of the history; or show in words why there is nothing, and give None."""
    path = live_answers.store_path()
    if path is None:
        show(words.no_store_notice())
        return None
    found = read(str(path))
    if isinstance(found, ArchiveTrouble):
        show(words.archive_notice(found.kind, found.detail))
        return None
    return found


def any_ended(requests: int, newest_s: float | None) -> bool:
    """Whether requests ended in the chosen range; where none did, say so and offer the last traffic before it."""
    if requests:
        return True
    if newest_s is None:
        show(words.empty_store_notice())
        return False
    wanted = filters.chosen()
    show(words.nothing_ended_notice(time.time() - newest_s, moment(newest_s)))
    if st.button("Show the last traffic", key="last_traffic"):
        filters.show(newest_s - max(wanted.span_s or 0.0, 120.0), newest_s)
        st.rerun()  # The bar at the side shows the new range too.
    return False


def person() -> Person:
    """Whoever looks at this page; without a session that still holds it ends here, or the part that is drawn again."""
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
        show(words.trouble_notice(answer, live_answers.addresses().api_url))
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
    """Show a chart without a title of its own; ``label`` says what it is to those who cannot see it.

    The span of time into which a reader zoomed becomes the range of all pages at a click.
    """
    span = drawing.draw(marks.marked(figure, live_answers.events(), zone()), key, label)
    if span is not None:
        filters.show(*(at.replace(tzinfo=zone()).timestamp() for at in span))
        st.rerun()  # The bar at the side shows the new range too.


def chart(title: str, figure: go.Figure, key: str, note: str | None = None) -> None:
    """Show a titled chart; ``key`` keeps it in place from one drawing to the next, and the note is its tooltip."""
    st.markdown(f"## {title}", help=note or None)
    plain_chart(figure, key, f"{title}. {note}" if note else title)
