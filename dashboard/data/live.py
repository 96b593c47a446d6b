"""What the pages share: the client, answers kept for a moment, the choice of engine, notices, charts."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import plotly.graph_objects as go
import streamlit as st

from dashboard.charts import figures
from dashboard.condition_views import HealthView
from dashboard.data.addresses import Addresses, from_environment
from dashboard.data.client import ControllerClient, Trouble
from dashboard.data.recent import RecentPast
from dashboard.life_views import ExplainView
from dashboard.text import words
from store import formatting
from store.http_api import ControllerView, FinishedPoint, GainView, QueueView, RecentView, StateView

REFRESH_S = 1.0
"""How often live parts are drawn again."""

KEPT_S = 0.8
"""Answers are shared between all open browsers for so long, so that ten of them ask no more than one."""

STEP_S = 5.0
"""Charts of finished requests move on in steps of this: a browser builds each changed chart anew."""

CONDITION_KEPT_S = 4.0
"""Configuration and versions do not change, and errors are no emergency of a second."""

Value = TypeVar("Value")


def addresses() -> Addresses:
    """Give the addresses from the script's arguments and, where absent, from the environment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--api")
    parser.add_argument("--store", type=Path)
    given, _ = parser.parse_known_args(sys.argv[1:])
    found = from_environment(os.environ)
    return replace(found, api_url=(given.api or found.api_url).rstrip("/"), store_path=given.store or found.store_path)


@st.cache_resource(max_entries=4, show_spinner=False, on_release=ControllerClient.close)
def _client(api_url: str, token: str | None) -> ControllerClient:
    return ControllerClient(api_url, token)


@st.cache_resource(max_entries=4, show_spinner=False)
def _stores(api_url: str) -> list[Path]:  # noqa: ARG001 - one list for each controller
    """The folder of the history that the controller named last, for whoever comes when it is gone."""
    return []


@st.cache_resource(ttl=KEPT_S, max_entries=4, show_spinner=False)
def _state(api_url: str, token: str | None) -> StateView | Trouble:
    answer = _client(api_url, token).state()
    if not isinstance(answer, Trouble) and answer.controller.store_path:
        _stores(api_url)[:] = [Path(answer.controller.store_path)]
    return answer


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner=False)
def _queue(api_url: str, token: str | None, engine_id: str | None, limit: int) -> QueueView | Trouble:
    return _client(api_url, token).queue(engine_id, limit)


@st.cache_resource(max_entries=4, show_spinner=False)
def _recent_past(api_url: str, token: str | None) -> RecentPast:
    return RecentPast(_client(api_url, token), time.monotonic)


@st.cache_resource(ttl=KEPT_S, max_entries=4, show_spinner=False)
def _gain(api_url: str, token: str | None) -> GainView | Trouble:
    return _client(api_url, token).gain()


@st.cache_resource(ttl=CONDITION_KEPT_S, max_entries=4, show_spinner=False)
def _condition(api_url: str, token: str | None) -> HealthView | Trouble:
    return _client(api_url, token).condition()


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner=False)
def _explanation(api_url: str, token: str | None, request_id: str) -> ExplainView | Trouble:
    return _client(api_url, token).explanation(request_id)


def state() -> StateView | Trouble:
    """Ask for the state, or give the answer of a moment ago."""
    here = addresses()
    return _state(here.api_url, here.token)


def queue(engine_id: str | None, limit: int) -> QueueView | Trouble:
    """Ask for the queue, or give the answer of a moment ago."""
    here = addresses()
    return _queue(here.api_url, here.token, engine_id, limit)


def recent(controller: ControllerView, window_s: float) -> RecentView | Trouble:
    """Ask for what happened within ``window_s`` before the controller's present."""
    here = addresses()
    now_s = time.time() if controller.now_s is None else controller.now_s
    return _recent_past(here.api_url, here.token).read(controller.controller_id, now_s, window_s)


def settled(points: Sequence[FinishedPoint], now_s: float | None) -> list[FinishedPoint]:
    """Leave out what ended since the last full `STEP_S` seconds, so that charts change once in so long."""
    if now_s is None:
        return list(points)
    until_s = now_s // STEP_S * STEP_S
    return [point for point in points if point.time_s < until_s]


def gain() -> GainView | Trouble:
    """Ask for the gain, or give the answer of a moment ago."""
    here = addresses()
    return _gain(here.api_url, here.token)


def condition() -> HealthView | Trouble:
    """Ask in which condition the controller is, or give the answer of a moment ago."""
    here = addresses()
    return _condition(here.api_url, here.token)


def forget() -> None:
    """Ask for the state anew next time: it was just changed."""
    _state.clear()


def client() -> ControllerClient:
    """The client itself, for what is asked once and at a person's wish."""
    here = addresses()
    return _client(here.api_url, here.token)


def explanation(request_id: str) -> ExplainView | Trouble:
    """Ask why a request ran when it did, or give the answer of a moment ago."""
    here = addresses()
    return _explanation(here.api_url, here.token, request_id)


def store_path() -> Path | None:
    """Give the folder that was named at start, or else the one that the controller names or last named."""
    here = addresses()
    if here.store_path is not None:
        return here.store_path
    state()
    return next(iter(_stores(here.api_url)), None)


def answered(answer: Value | Trouble) -> Value | None:
    """Give the answer; or show the trouble in words and give None."""
    if isinstance(answer, Trouble):
        show(words.trouble_notice(answer, addresses().api_url))
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


def zone() -> tzinfo:
    """Give the browser's time zone; UTC where it is not known."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def plain_chart(figure: go.Figure, key: str, label: str) -> None:
    """Show a chart without a title of its own; ``label`` says what it is to those who cannot see it."""
    st.plotly_chart(figure, key=key, config=figures.CONFIG, theme="streamlit", alt=label)


def chart(title: str, figure: go.Figure, key: str, note: str | None = None) -> None:
    """Show a titled chart; ``key`` keeps it in place from one drawing to the next."""
    st.markdown(f"##### {title}")
    if note:
        st.caption(note)
    plain_chart(figure, key, f"{title}. {note}" if note else title)
