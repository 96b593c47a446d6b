"""Time range, engine and model: chosen once, in force on every page, and kept in the address; and the pause."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo

import streamlit as st

from dashboard.data import live
from store.http_api import EngineView, StateView
from store.reading.scope import PART_KINDS, Part, Scope

RANGES: dict[str, float | None] = {
    "2 min": 120.0, "5 min": 300.0, "10 min": 600.0, "15 min": 900.0, "30 min": 1800.0, "1 hour": 3600.0,
    "6 hours": 21_600.0, "24 hours": 86_400.0, "7 days": 604_800.0, "all": None,
}  # fmt: skip
CUSTOM = "custom"
"""The range from one moment to another."""
DEFAULT_RANGE = "10 min"
LIVE_S = 600.0
"""Span that the controller's live answers cover; longer ranges come from the history."""
_KEYS = {"range": "filter_range", "engine": "filter_engine", "model": "filter_model"}
"""Names in the address, and of the choices."""
_KEPT = "filters"
"""The filters in the session. A choice's own value does not do: Streamlit forgets it when the page changes before the
browser has drawn the choice."""
_FROM, _TO = "filter_from", "filter_to"
_PART = "filter_part"
_PAUSED = "filter_paused"


@dataclass(frozen=True)
class Filters:
    """The chosen range, engine and model."""

    range_name: str = DEFAULT_RANGE
    engine_id: str | None = None
    """None: all."""
    model: str | None = None
    """None: all."""
    since_s: float = 0.0
    """Begin of a custom range, Unix seconds."""
    until_s: float = 0.0
    """Its end."""

    @property
    def span_s(self) -> float | None:
        """Span in seconds; None for the whole history."""
        return self.until_s - self.since_s if self.range_name == CUSTOM else RANGES[self.range_name]

    def scope(self, now_s: float, step_s: float, part: Part | None = None) -> Scope:
        """What to read of the history; readers within one step of time share an answer."""
        until_s = math.ceil(now_s / step_s) * step_s
        end_s = self.until_s if self.range_name == CUSTOM else None if self.span_s is None else until_s
        return Scope(self.span_s, self.engine_id, self.model, part, end_s)

    @property
    def live_s(self) -> float:
        """The span, limited to `LIVE_S`."""
        return min(self.span_s or LIVE_S, LIVE_S)

    @property
    def is_live(self) -> bool:
        """Whether the live answers cover the range."""
        return self.range_name != CUSTOM and self.span_s is not None and self.span_s <= LIVE_S

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
        since_s, until_s = (_moment_s(st.query_params.get(name, "")) for name in ("from", "to"))
        range_name = found["range"] if found["range"] in RANGES else DEFAULT_RANGE
        kept = Filters(range_name or DEFAULT_RANGE, found["engine"], found["model"])
        if since_s is not None and until_s is not None and since_s < until_s:
            kept = replace(kept, range_name=CUSTOM, since_s=since_s, until_s=until_s)
    return kept


def show(since_s: float, until_s: float) -> None:
    """Choose a span, in whole minutes around it; the next run of the page has it."""
    begin_s = 60.0 * math.floor(since_s / 60.0)
    end_s = max(60.0 * math.ceil(until_s / 60.0), begin_s + 60.0)
    st.session_state[_KEPT] = replace(chosen(), range_name=CUSTOM, since_s=begin_s, until_s=end_s)


def paused() -> bool:
    """Whether the reader holds the pages still."""
    return bool(st.session_state.get(_PAUSED))


def pause() -> None:
    """Draw the switch that holds the pages still; outside fragments."""
    st.toggle("Pause the refresh", key=_PAUSED)


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


def choose_part(known: Mapping[Part, str]) -> None:
    """Draw the choice of a part, where `part` then finds it; what was chosen stays, though no request has it now.

    Args:
        known: Parts, and what each is called.
    """
    now = part()
    named = "" if now is None else f"{now.by}:{now.name}"
    called = {f"{one.by}:{one.name}": f"{one.by} {name}" for one, name in known.items()}
    options = ["", *called]
    st.session_state[_PART] = named
    st.selectbox(
        "Filter by",
        options if named in options else [*options, named],
        key=_PART,
        on_change=_keep_part_in_address,
        format_func=lambda value: called.get(value, value.replace(":", " ", 1)) or "all requests",
    )


def _keep_part_in_address() -> None:
    chosen_part = st.session_state.get(_PART)
    if chosen_part:
        st.query_params["part"] = chosen_part
    else:
        st.query_params.pop("part", None)


def draw(zone: tzinfo) -> None:
    """Draw the choice, for the bar that all pages share; outside fragments.

    Args:
        zone: of the moments of a custom range.
    """
    now = chosen()
    view = live.state()
    engines = view.engines if isinstance(view, StateView) else ()
    for name, value in _in_words(now).items():
        st.session_state[_KEYS[name]] = value
    st.selectbox("Time range", [*RANGES, CUSTOM], key=_KEYS["range"], on_change=_take_over, args=(zone,))
    if now.range_name == CUSTOM:
        for label, key, time_s in (("From", _FROM, now.since_s), ("To", _TO, now.until_s)):
            st.session_state[key] = datetime.fromtimestamp(time_s, zone).replace(tzinfo=None)
            st.datetime_input(label, key=key, step=60, on_change=_take_over, args=(zone,))
    _choice("Engine", "engine", {engine.engine_id for engine in engines}, now.engine_id, zone)
    _choice("Model", "model", {engine.model for engine in engines}, now.model, zone)
    _keep_in_address(now)


def _choice(label: str, name: str, known: set[str], now: str | None, zone: tzinfo) -> None:
    """What is connected, or all; what was chosen stays, though its engine be gone."""
    names = sorted(known | ({now} if now else set()))
    st.selectbox(
        label,
        ["", *names],
        format_func=lambda value: value or "all",
        key=_KEYS[name],
        on_change=_take_over,
        args=(zone,),
    )


def _take_over(zone: tzinfo) -> None:
    """Keep what is chosen now; a custom range begins as the one before it, and one that ends before it begins stays out."""
    before = chosen()
    words = _in_words(before)
    now = {name: st.session_state.get(key, words[name]) for name, key in _KEYS.items()}
    after = replace(before, range_name=now["range"], engine_id=now["engine"] or None, model=now["model"] or None)
    if after.range_name == CUSTOM and before.range_name != CUSTOM:
        until_s = 60.0 * math.ceil(time.time() / 60.0)
        after = replace(after, since_s=until_s - max(before.span_s or 86_400.0, 120.0), until_s=until_s)
    elif after.range_name == CUSTOM:
        from_s, to_s = (_chosen_s(st.session_state.get(key), zone) for key in (_FROM, _TO))
        if from_s is not None and to_s is not None and from_s < to_s:
            after = replace(after, since_s=from_s, until_s=to_s)
    st.session_state[_KEPT] = after


def _chosen_s(moment: object, zone: tzinfo) -> float | None:
    """Unix seconds of a moment on the wall clock of a zone."""
    return moment.replace(tzinfo=zone).timestamp() if isinstance(moment, datetime) else None


def _moment_s(text: str) -> float | None:
    """Unix seconds of a moment in an address, in UTC unless it says otherwise.

    >>> _moment_s("2026-01-01T00:00Z"), _moment_s("noon")
    (1767225600.0, None)
    """
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _in_words(filters: Filters) -> dict[str, str]:
    """The filters as the address and the choices name them; all: nothing."""
    return {"range": filters.range_name, "engine": filters.engine_id or "", "model": filters.model or ""}


def _keep_in_address(filters: Filters) -> None:
    wanted = _said(filters)
    for name in (*_KEYS, "from", "to"):
        if name not in wanted:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != wanted[name]:
            st.query_params[name] = wanted[name]


def _said(filters: Filters) -> dict[str, str]:
    """What an address has to say of them: what is not as usual."""
    usual = _in_words(Filters())
    said = {name: value for name, value in _in_words(filters).items() if value != usual[name]}
    if filters.range_name == CUSTOM:
        del said["range"]
        said |= {name: _utc(time_s) for name, time_s in (("from", filters.since_s), ("to", filters.until_s))}
    return said


def _utc(time_s: float) -> str:
    """A moment for an address."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%MZ}"
