"""Time range, engine and model: chosen once, in force on every page, and kept in the address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard.data import live
from store.http_api import EngineView, StateView
from store.reading.scope import PART_KINDS, Part

RANGES: dict[str, float | None] = {
    "2 min": 120.0, "5 min": 300.0, "10 min": 600.0, "1 hour": 3600.0, "6 hours": 21_600.0, "24 hours": 86_400.0,
    "7 days": 604_800.0, "all": None,
}  # fmt: skip
DEFAULT_RANGE = "10 min"
LIVE_S = 600.0
"""Span that the controller's live answers cover; longer ranges come from the history."""
_KEYS = {"range": "filter_range", "engine": "filter_engine", "model": "filter_model"}
"""Names in the address, and of the choices."""
_KEPT = "filters"
"""The filters in the session. A choice's own value does not do: Streamlit forgets it when the page changes before the
browser has drawn the choice."""
_PART = "filter_part"


@dataclass(frozen=True)
class Filters:
    """The chosen range, engine and model."""

    range_name: str = DEFAULT_RANGE
    engine_id: str | None = None
    """None: all."""
    model: str | None = None
    """None: all."""

    @property
    def span_s(self) -> float | None:
        """Span in seconds; None for the whole history."""
        return RANGES[self.range_name]

    @property
    def live_s(self) -> float:
        """The span, limited to `LIVE_S`."""
        return min(self.span_s or LIVE_S, LIVE_S)

    @property
    def is_live(self) -> bool:
        """Whether the live answers cover the range."""
        return self.span_s is not None and self.span_s <= LIVE_S

    def engines(self, engines: Sequence[EngineView]) -> list[EngineView]:
        """The chosen ones of the engines."""
        return [
            engine
            for engine in engines
            if self.engine_id in {None, engine.engine_id} and self.model in {None, engine.model}
        ]

    @property
    def asked(self) -> dict[str, str]:
        """Engine and model as the controller's API names them."""
        chosen = {"engine_id": self.engine_id, "model": self.model}
        return {name: value for name, value in chosen.items() if value is not None}

    def hides(self, engines: Sequence[EngineView], engine_id: str) -> bool:
        """Whether the filters exclude this engine; an engine that is gone has no known model."""
        if self.engine_id is not None:
            return engine_id != self.engine_id
        return self.model is not None and engine_id not in {engine.engine_id for engine in self.engines(engines)}


def chosen() -> Filters:
    """The filters in force: of this session, or else of the address."""
    kept = st.session_state.get(_KEPT)
    if not isinstance(kept, Filters):
        found = {name: st.query_params.get(name) or None for name in _KEYS}
        range_name = found["range"] if found["range"] in RANGES else None
        kept = Filters(range_name or DEFAULT_RANGE, found["engine"], found["model"])
    return kept


def keep() -> None:
    """Copy the address's filters into the session; first, because a run can end at any call of Streamlit."""
    st.session_state[_KEPT] = chosen()


def in_address() -> dict[str, str]:
    """Return the filters in force as parameters of an address."""
    return _said(chosen())


def part() -> Part | None:
    """The class, tenant, model or cluster that the address names; None: all requests."""
    by, _, name = str(st.session_state.get(_PART, st.query_params.get("part")) or "").partition(":")
    return Part(by, name) if by in PART_KINDS and name else None


def choose_part(known: Sequence[Part]) -> None:
    """Draw the choice of a part, where `part` then finds it; what was chosen stays, though no request has it now."""
    now = part()
    named = "" if now is None else f"{now.by}:{now.name}"
    options = ["", *(f"{one.by}:{one.name}" for one in known)]
    st.session_state[_PART] = named
    st.selectbox(
        "Only",
        options if named in options else [*options, named],
        key=_PART,
        on_change=_keep_part_in_address,
        format_func=lambda value: value.replace(":", " ", 1) or "all requests",
    )


def _keep_part_in_address() -> None:
    chosen_part = st.session_state.get(_PART)
    if chosen_part:
        st.query_params["part"] = chosen_part
    else:
        st.query_params.pop("part", None)


def draw() -> None:
    """Draw the choice, for the bar that all pages share; outside fragments."""
    now = chosen()
    view = live.state()
    engines = view.engines if isinstance(view, StateView) else ()
    for name, value in _in_words(now).items():
        st.session_state[_KEYS[name]] = value
    st.selectbox("Time range", list(RANGES), key=_KEYS["range"], on_change=_take_over)
    _choice("Engine", "engine", {engine.engine_id for engine in engines}, now.engine_id)
    _choice("Model", "model", {engine.model for engine in engines}, now.model)
    _keep_in_address(now)


def _choice(label: str, name: str, known: set[str], now: str | None) -> None:
    """What is connected, or all; what was chosen stays, though its engine be gone."""
    names = sorted(known | ({now} if now else set()))
    st.selectbox(label, ["", *names], format_func=lambda value: value or "all", key=_KEYS[name], on_change=_take_over)


def _take_over() -> None:
    """Keep what is chosen now."""
    before = _in_words(chosen())
    now = {name: st.session_state.get(key, before[name]) for name, key in _KEYS.items()}
    st.session_state[_KEPT] = Filters(now["range"], now["engine"] or None, now["model"] or None)


def _in_words(filters: Filters) -> dict[str, str]:
    """The filters as the address and the choices name them; all: nothing."""
    return {"range": filters.range_name, "engine": filters.engine_id or "", "model": filters.model or ""}


def _keep_in_address(filters: Filters) -> None:
    wanted = _said(filters)
    for name in _KEYS:
        if name not in wanted:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != wanted[name]:
            st.query_params[name] = wanted[name]


def _said(filters: Filters) -> dict[str, str]:
    """What an address has to say of them: what is not as usual."""
    usual = _in_words(Filters())
    return {name: value for name, value in _in_words(filters).items() if value != usual[name]}
