"""The page *Latency*: how long requests take, and against first come, first served."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import figures, live, series, words
from dashboard.views import FinishedPoint, GainView

WINDOW_S = 600
BIN_S = 20.0


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Latency")
    st.caption("Requests that ended within the last 10 minutes.")
    _live()


@st.fragment(run_every=live.REFRESH_S)
def _live() -> None:
    state = live.answered(live.state())
    if state is None:
        return
    recent = live.answered(live.recent(state.controller, WINDOW_S))
    if recent is None:
        return
    _percentiles(live.settled(recent.finished, state.controller.now_s))
    st.divider()
    st.markdown("##### TTLT against first come, first served")
    gain = live.answered(live.gain())
    if gain is not None:
        _gain(gain)


def _percentiles(ended: Sequence[FinishedPoint]) -> None:
    zone = live.zone()
    first, last = st.columns(2)
    with first:
        rows = series.ttft(ended, BIN_S)
        live.chart("Time to first token", figures.latency(rows, "TTFT", zone), "latency_ttft", f"Per {BIN_S:.0f} s.")
    with last:
        rows = series.ttlt(ended, BIN_S)
        note = f"Arrival to last token, per {BIN_S:.0f} s; aborted requests are left out."
        live.chart("Time to last token", figures.latency(rows, "TTLT", zone), "latency_ttlt", note)


def _gain(gain: GainView) -> None:
    if gain.status != "ready":
        live.show(words.gain_notice(gain))
        return
    st.caption(words.gain_method(gain))
    modelled, fcfs, actual = gain.modelled, gain.fcfs, gain.actual
    columns = st.columns(4)
    columns[0].metric("Measured mean TTLT", words.span(actual.mean_ttlt_s if actual else None))
    columns[1].metric("Replayed, policy in use", words.span(modelled.mean_ttlt_s if modelled else None))
    columns[2].metric("Replayed, first come, first served", words.span(fcfs.mean_ttlt_s if fcfs else None))
    columns[3].metric(
        "Replay against replay",
        words.change(fcfs, modelled),
        help="Mean TTLT of the policy in use against first come, first served, both replayed: like against like",
    )
    st.plotly_chart(figures.gain(gain), key="latency_gain", config=figures.CONFIG, theme="streamlit")
