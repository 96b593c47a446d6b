"""The controller's answers as all pages and browsers share them: each is kept for a moment."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import streamlit as st

from dashboard.data import archive
from dashboard.data.addresses import Addresses, from_environment
from dashboard.data.client import ControllerClient, Trouble
from store.http_api import GainView, HealthView, QueueView, StateView
from store.http_now import Event, NowView
from store.http_requests import ExplainView, FinishedView, LatenciesView, LoadView
from store.http_service import ServiceView

REFRESH_S = 1.0
"""How often live parts are drawn again."""

KEPT_S = 0.8
"""Time for which all open browsers share an answer, so that ten of them ask no more than one."""

LOAD_KEPT_S = 2.0
"""A chart of the load changes once a bin, which is as long as this or longer."""

STEP_S = 5.0
"""Charts of finished requests move on in steps of this: a browser rebuilds each changed chart."""

HEALTH_KEPT_S = 4.0
"""Configuration and versions do not change, and warnings may be a few seconds late."""

PROMPTS_KEPT_S = 30.0
"""How long it is taken for granted that a history holds prompts or none."""

Chosen: TypeAlias = tuple[tuple[str, str], ...]
"""Engine, model and part that are asked for, by the API's names."""


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
def _now(api_url: str, token: str | None, chosen: Chosen) -> NowView | Trouble:
    return _client(api_url, token).now(dict(chosen))


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner=False)
def _queue(api_url: str, token: str | None, engine_id: str | None, limit: int) -> QueueView | Trouble:
    return _client(api_url, token).queue(engine_id, limit)


@st.cache_resource(ttl=LOAD_KEPT_S, max_entries=16, show_spinner=False)
def _load(api_url: str, token: str | None, window_s: float, bins: int, chosen: Chosen) -> LoadView | Trouble:
    return _client(api_url, token).load(window_s, bins, dict(chosen))


@st.cache_resource(ttl=STEP_S, max_entries=16, show_spinner=False)
def _latency(api_url: str, token: str | None, window_s: float, bins: int, chosen: Chosen) -> LatenciesView | Trouble:
    return _client(api_url, token).latency(window_s, bins, dict(chosen))


@st.cache_resource(ttl=STEP_S, max_entries=16, show_spinner=False)
def _service(api_url: str, token: str | None, window_s: float, bins: int, chosen: Chosen) -> ServiceView | Trouble:
    return _client(api_url, token).service(window_s, bins, dict(chosen))


@st.cache_resource(ttl=STEP_S, max_entries=16, show_spinner=False)
def _finished(api_url: str, token: str | None, window_s: float, limit: int, chosen: Chosen) -> FinishedView | Trouble:
    return _client(api_url, token).finished(window_s, limit, dict(chosen))


@st.cache_resource(max_entries=4, show_spinner=False)
def _gains(api_url: str) -> list[GainView]:  # noqa: ARG001 - one list for each controller
    """The comparison that the controller gave last, for when it is gone."""
    return []


@st.cache_resource(ttl=KEPT_S, max_entries=4, show_spinner=False)
def _gain(api_url: str, token: str | None) -> GainView | Trouble:
    answer = _client(api_url, token).gain()
    if isinstance(answer, GainView) and answer.gain is not None:
        _gains(api_url)[:] = [answer]
    return answer


@st.cache_resource(ttl=HEALTH_KEPT_S, max_entries=4, show_spinner=False)
def _health(api_url: str, token: str | None) -> HealthView | Trouble:
    return _client(api_url, token).health()


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner=False)
def _explanation(api_url: str, token: str | None, request_id: str) -> ExplainView | Trouble:
    return _client(api_url, token).explanation(request_id)


def state() -> StateView | Trouble:
    """Ask for the state, or give the answer of a moment ago."""
    here = addresses()
    return _state(here.api_url, here.token)


def now(chosen: Mapping[str, str] | None = None) -> NowView | Trouble:
    """Ask whether all is well and for the figures of the chosen engines, or give the answer of a moment ago."""
    here = addresses()
    return _now(here.api_url, here.token, tuple(sorted((chosen or {}).items())))


def events() -> tuple[Event, ...]:
    """What happened lately, the latest first; nothing while the controller does not answer."""
    found = now()
    return found.events if isinstance(found, NowView) else ()


def queue(engine_id: str | None, limit: int) -> QueueView | Trouble:
    """Ask for the queue, or give the answer of a moment ago."""
    here = addresses()
    return _queue(here.api_url, here.token, engine_id, limit)


def load(window_s: float, bins: int, chosen: Mapping[str, str]) -> LoadView | Trouble:
    """Ask for the load of the last ``window_s`` seconds, or give the answer of a moment ago."""
    here = addresses()
    return _load(here.api_url, here.token, window_s, bins, tuple(sorted(chosen.items())))


def latency(window_s: float, bins: int, chosen: Mapping[str, str]) -> LatenciesView | Trouble:
    """Ask for the latencies of the last ``window_s`` seconds, or give the answer of some seconds ago."""
    here = addresses()
    return _latency(here.api_url, here.token, window_s, bins, tuple(sorted(chosen.items())))


def service(window_s: float, bins: int, chosen: Mapping[str, str]) -> ServiceView | Trouble:
    """Ask for the service levels of the last ``window_s`` seconds, or give the answer of some seconds ago."""
    here = addresses()
    return _service(here.api_url, here.token, window_s, bins, tuple(sorted(chosen.items())))


def finished(window_s: float, limit: int, chosen: Mapping[str, str]) -> FinishedView | Trouble:
    """Ask for the latest requests that ended, or give the answer of some seconds ago."""
    here = addresses()
    return _finished(here.api_url, here.token, window_s, limit, tuple(sorted(chosen.items())))


def gain() -> GainView | Trouble:
    """Ask for the gain, or give the answer of a moment ago."""
    here = addresses()
    return _gain(here.api_url, here.token)


def last_gain() -> GainView | None:
    """Give the comparison that the controller gave last; None where it gave none."""
    return next(iter(_gains(addresses().api_url)), None)


def health() -> HealthView | Trouble:
    """Ask for configuration, versions and the latest warnings, or give the answer of a moment ago."""
    here = addresses()
    return _health(here.api_url, here.token)


def stores_prompts() -> bool:
    """Whether the controller says that it stores prompts, or the history holds some."""
    found, path = health(), store_path()
    said = isinstance(found, HealthView) and any(
        setting.key == "store.prompts" and setting.value == "True" for setting in found.configuration
    )
    return said or (path is not None and _holds_prompts(str(path)))


@st.cache_resource(ttl=PROMPTS_KEPT_S, max_entries=4, show_spinner=False)
def _holds_prompts(path: str) -> bool:
    return archive.holds_prompts(Path(path))


def forget() -> None:
    """Drop the state that is kept: it was just changed."""
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
