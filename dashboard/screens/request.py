"""The page *Request*: what one request waited for, in a sentence, and its whole timeline."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import duckdb
import streamlit as st
from streamlit.navigation.page import StreamlitPage

from dashboard.charts import request_timeline
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble, read
from dashboard.data.client import Trouble
from dashboard.screens import components, filters
from dashboard.text import request as text
from dashboard.text import words
from store import formatting
from store.errors import StoreError
from store.history.reader import open_history
from store.http_api import QueueView, StateView
from store.http_requests import ExplainView, Explanation, FinishedPoint, FinishedView, RequestTimeline
from store.reading.latencies import read_finished
from store.reading.request_timeline import read_timeline
from store.reading.scope import Scope
from store.service_levels import CAUSES, MEANINGS, NOT_CONFIGURED

PARAMETER = "request"
"""Name in the address."""
_PATH = "request"
REFRESH_S = 2.0
"""Interval at which the timeline of an unfinished request is redrawn; it costs the controller more than the queue."""
LISTED = 15
"""Number of requests listed when none is chosen."""
OVERTAKERS_SHOWN = 200
_FOLLOWED_S = 5.0
"""Time for which the browser is directed to the chosen request: this can take a while, and each redraw starts over."""
_CHOSEN = "request_to_open"
"""The table, the request chosen in it and until when it is to be followed, in the session."""


def page() -> None:
    """Draw the page of the request that the address names."""
    st.title("Request")
    named = st.query_params.get(PARAMETER, "")
    entered = st.text_input("Request", value=named, placeholder="request id, such as cmpl-8f…", key=f"request_{named}")
    request_id = entered.strip()
    if request_id != named:
        st.query_params[PARAMETER] = request_id
    if not request_id:
        components.show(words.no_request_notice())
        _offer()
        return
    found = _found(request_id)
    ended = isinstance(found, ExplainView) and found.facts.finished_s is not None
    components.live(partial(_timeline, request_id), None if ended else REFRESH_S)


def link() -> StreamlitPage:
    """The page, for the navigation and for those that lead to it."""
    return st.Page(page, title="Request", icon=":material/account_tree:", url_path=_PATH)


def choosable(data: Any, request_ids: Sequence[str], *, key: str, **options: Any) -> None:  # noqa: ANN401 - whatever Streamlit shows as a table, and its own options
    """Show a table of requests of which selecting a row opens one."""

    def choose() -> None:
        rows = st.session_state[key].selection.rows
        if rows and rows[0] < len(request_ids):
            st.session_state[_CHOSEN] = (key, request_ids[rows[0]], time.monotonic() + _FOLLOWED_S)

    st.dataframe(
        data,
        key=key,
        hide_index=True,
        placeholder=formatting.DASH,
        on_select=choose,
        selection_mode="single-row",
        **options,
    )
    _follow_choice(key)


def _follow_choice(key: str) -> None:
    """Have the browser go to the request that was chosen in the table ``key``, if one was.

    The browser itself, as by a link: where the server changes the page (`st.switch_page`), calls for the next drawing
    of live parts that are under way still name the old page, and Streamlit then empties the new one for good.
    """
    table, request_id, until_s = st.session_state.get(_CHOSEN, ("", "", 0.0))
    if table == key and time.monotonic() < until_s:
        target = json.dumps(linked(request_id, filters.in_address()))
        st.html(f"<script>window.location.assign({target})</script>", unsafe_allow_javascript=True)


def linked(request_id: str, others: Mapping[str, str]) -> str:
    """Give the address of a request's page as seen from any other, safe in HTML and JavaScript whatever the name is.

    >>> linked('odd"</script>&', {"range": "5 min"})
    'request?request=odd%22%3C%2Fscript%3E%26&range=5%20min'
    """
    return f"{_PATH}?{urlencode({PARAMETER: request_id, **others}, quote_via=quote, safe='')}"


def _offer() -> None:
    """List what could be chosen: the latest that ended and the first of the queue."""
    state = components.answered(live.state())
    queue = live.queue(None, LISTED)
    unfinished = [row.request_id for row in queue.rows] if isinstance(queue, QueueView) else []
    left, right = st.columns(2)
    with left:
        st.markdown("## Unfinished")
        _names(unfinished, "request_unfinished", "No request waits or runs, as far as is known.")
    with right:
        st.markdown("## Finished last")
        ended = live.finished(600.0, LISTED, {})
        if state is not None:
            components.answered(ended)
        points = ended.finished if isinstance(ended, FinishedView) else ()
        _ended((points or _latest_recorded())[::-1])


def _latest_recorded() -> tuple[FinishedPoint, ...]:
    """The latest finished requests of the history."""
    path = live.store_path()
    found = None if path is None else _read_latest(str(path))
    return () if found is None or isinstance(found, ArchiveTrouble) else found


@st.cache_resource(ttl=5.0, max_entries=4, show_spinner=False)
def _read_latest(path: str) -> tuple[FinishedPoint, ...] | ArchiveTrouble:
    return read(Path(path), lambda connection: read_finished(connection, Scope(), 0.0, LISTED))


def _names(names: Sequence[str], key: str, nothing: str) -> None:
    if names:
        choosable({"Request": names}, names, key=key)
    else:
        st.caption(nothing)


def _ended(points: Sequence[FinishedPoint]) -> None:
    data = {
        "Request": [point.request_id for point in points],
        "TTLT (s)": [None if point.ttlt_s is None else round(point.ttlt_s, 2) for point in points],
        "Output tokens": [point.output_tokens for point in points],
    }
    if points:
        choosable(data, [point.request_id for point in points], key="request_ended")
    else:
        st.caption("No finished request is known.")


def _found(request_id: str) -> ExplainView | Trouble | None:
    """The controller's answer; without one the history's facts; the trouble where there are none, None when unknown."""
    answer = live.explanation(request_id)
    if isinstance(answer, ExplainView):
        return answer
    facts = _recorded(request_id)
    if facts is not None:
        return ExplainView(facts)
    return None if answer.kind == "unknown" else answer


@st.cache_resource(ttl=5.0, max_entries=16, show_spinner=False)
def _read(path: str, request_id: str) -> RequestTimeline | None:
    try:
        with open_history(Path(path)) as connection:
            return read_timeline(connection, request_id)
    except (StoreError, duckdb.Error):
        return None


def _recorded(request_id: str) -> RequestTimeline | None:
    path = live.store_path()
    return None if path is None else _read(str(path), request_id)


def _timeline(request_id: str) -> None:
    found = _found(request_id)
    if found is None:
        components.show(words.unknown_request_notice(request_id))
        return
    if isinstance(found, Trouble):
        components.show(words.trouble_notice(found, live.addresses().api_url))
        return
    _notices(found, request_id)
    waits = found.explanation.waits if found.explanation is not None else ()
    st.markdown(f"**{words.plain(text.lead(found.facts, waits))}**")
    _figures(found.facts)
    if found.explanation is not None:
        _sentences(found.explanation)
    _charts(found)
    _overtakers(found)


def _notices(found: ExplainView, request_id: str) -> None:
    """Say what is out of the ordinary with what is shown."""
    if found.explanation is None:
        trouble = live.explanation(request_id)
        if isinstance(trouble, Trouble):
            components.show(words.facts_only_notice(words.trouble_notice(trouble, live.addresses().api_url)))
    state = live.state()
    if found.facts.finished_s is None and isinstance(state, StateView):
        connected = {engine.session_id for engine in state.engines if engine.connected}
        if found.facts.session_id not in connected:
            components.show(words.engine_gone_notice(found.facts.engine_id))


def _figures(timeline: RequestTimeline) -> None:
    predicted = timeline.predicted
    columns = st.columns(6)
    columns[0].metric("State", timeline.state, delta=timeline.reason, delta_color="off", delta_arrow="off")
    label = "TTLT" if timeline.finished_s is not None else "Age"
    columns[1].metric(label, formatting.span(timeline.until_s - timeline.arrival_s))
    first_s = None if timeline.first_token_s is None else timeline.first_token_s - timeline.arrival_s
    columns[2].metric("TTFT", formatting.span(first_s))
    expected = None if predicted is None else f"{formatting.count(predicted.mean_tokens)} predicted"
    columns[3].metric(
        "Output tokens",
        formatting.count(request_timeline.attained_tokens(timeline)),
        delta=expected,
        delta_color="off",
        delta_arrow="off",
    )
    columns[4].metric("Preemptions", formatting.count(len(timeline.losses)))
    index_s = f"{timeline.choices[0].index_s:.3g} s" if timeline.choices else formatting.DASH
    columns[5].metric("Index on arrival", index_s, help="In engine-seconds; lower runs first")
    _service(timeline)


def _service(timeline: RequestTimeline) -> None:
    """Class and targets, each target with what came, and whether all were met."""
    level, course, judged = timeline.level, timeline.course, timeline.judgement
    ended, first = timeline.finished_s is not None, timeline.first_token_s is not None
    met = None if judged is None else judged.met
    state = ("not counted" if ended else "not ended yet") if met is None else "met" if met else "missed"
    columns = st.columns(6)
    columns[0].metric("Class", "none" if level.service_class == NOT_CONFIGURED else words.plain(level.service_class))
    _target(columns[1], "TTFT target", level.targets.ttft_s, course.ttft_s if first else None)
    _target(columns[2], "TPOT target", level.targets.tpot_s, course.tpot_s if ended else None)
    _target(
        columns[3], "End-to-end target", level.targets.e2e_s, course.finished_s - course.arrival_s if ended else None
    )
    columns[4].metric("Targets", state)
    columns[5].metric(
        "Missed because",
        CAUSES[judged.cause] if judged is not None and judged.cause is not None else formatting.DASH,
        help=MEANINGS[judged.cause].capitalize() if judged is not None and judged.cause is not None else None,
    )


def _target(
    column: st.delta_generator.DeltaGenerator, label: str, target_s: float | None, came_s: float | None
) -> None:
    """Show a target and, where it is known, what came."""
    came = None if target_s is None or came_s is None else f"took {formatting.span(came_s)}"
    column.metric(label, formatting.span(target_s), delta=came, delta_color="off", delta_arrow="off")


def _sentences(explanation: Explanation) -> None:
    st.markdown("## In detail")
    topics = dict.fromkeys(sentence.about for sentence in explanation.sentences)
    lines = [
        " ".join(words.plain(sentence.text) for sentence in explanation.sentences if sentence.about == topic)
        for topic in topics
    ]
    st.markdown("\n".join(f"- {line}" for line in lines))


def _charts(found: ExplainView) -> None:
    timeline = found.facts
    components.chart("Timeline", request_timeline.bars(timeline), "request_timeline")
    upper, lower = st.columns(2), st.columns(2)
    with upper[0]:
        components.chart("Predicted answer length", request_timeline.distribution(timeline), "request_distribution")
    with upper[1]:
        components.chart(
            "Index over output tokens",
            request_timeline.index(timeline),
            "request_index",
            "Requests with a lower index run first.",
        )
    with lower[0]:
        components.chart(
            "Place in the queue",
            request_timeline.queue(timeline),
            "request_queue",
            "Engines report the head of their queue only: a request further back is not shown.",
        )
    if found.explanation is not None:
        with lower[1]:
            components.chart(
                "What it waited for before its start",
                request_timeline.waits(found.explanation.waits),
                "request_waits",
            )


def _overtakers(found: ExplainView) -> None:
    if found.explanation is None:
        return
    st.markdown("## Requests that arrived later and started first")
    overtakers = found.explanation.overtakers[:OVERTAKERS_SHOWN]
    if not overtakers:
        st.caption("No request that arrived later started before it.")
        return
    if len(found.explanation.overtakers) > OVERTAKERS_SHOWN:
        st.caption(f"The first {OVERTAKERS_SHOWN} of {formatting.count(len(found.explanation.overtakers))} are shown.")
    data = {
        "Request": [overtaker.request_id for overtaker in overtakers],
        "Why": [_WHYS.get(overtaker.why, overtaker.why) for overtaker in overtakers],
        "Arrived later by (s)": [_later_s(overtaker.arrival_s, found.facts.arrival_s) for overtaker in overtakers],
        "Started at (s)": [_later_s(overtaker.scheduled_s, found.facts.arrival_s) for overtaker in overtakers],
        "Priority": [overtaker.priority for overtaker in overtakers],
        "Index (s)": [_digits(overtaker.index_s) for overtaker in overtakers],
        "Index of this request (s)": [_digits(overtaker.own_index_s) for overtaker in overtakers],
    }
    choosable(data, [overtaker.request_id for overtaker in overtakers], key="request_overtakers")


def _later_s(time_s: float | None, arrival_s: float) -> float | None:
    return None if time_s is None else round(time_s - arrival_s, 3)


def _digits(index_s: float | None) -> float | None:
    return None if index_s is None else float(f"{index_s:.3g}")


_WHYS = {
    "class": "higher priority",
    "index": "lower index",
    "prior": "not predicted yet",
    "engine": "the engine's own order",
    "unexplained": "not recorded",
}
