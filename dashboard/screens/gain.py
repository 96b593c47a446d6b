"""The page *Gain*: what the order brings against first come, first served, how sure that is, and who loses."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard.charts import figures
from dashboard.charts import gain as gain_charts
from dashboard.data import live
from dashboard.screens import components
from dashboard.text import gain as gain_text
from dashboard.text import words
from store import formatting
from store.http_api import Gain, GainPart, StateView

REFRESH_S = 5.0
"""The comparison itself is made every half minute."""


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Gain")
    st.caption("The latest requests of the busiest engine, replayed in both orders. The filters do not apply here.")
    _live()


@st.fragment(run_every=REFRESH_S)
def _live() -> None:
    state = components.answered(live.state())
    if state is None:
        return
    answer = components.answered(live.gain())
    if answer is None:
        return
    gain = answer.gain
    if gain is None:
        components.show(gain_text.gain_notice(answer))
        return
    components.show(gain_text.gain_verdict(gain, words.in_force(state.engines)))
    _figures(gain, state)
    _trust(gain)
    left, right = st.columns(2)
    with left:
        components.chart("Time to last token", figures.gain(gain), "gain_ttlt", "Measured, and both replays.")
    with right:
        components.chart(
            "Where it gains and where it loses",
            gain_charts.parts(gain.parts),
            "gain_parts",
            "Mean TTLT against first come, first served, with 90% intervals; left of the line is sooner.",
        )
    _parts(gain.parts)
    st.caption(gain_text.gain_method(gain))


def _figures(gain: Gain, state: StateView) -> None:
    each = gain.per_request
    columns = st.columns(5)
    heading = "Mean TTLT if on" if words.in_force(state.engines) in {"shadow", "off"} else "Mean TTLT"
    columns[0].metric(
        heading,
        gain_text.ratio_change(gain.ratio.mean),
        delta=gain_text.interval(gain.ratio),
        delta_color="off",
        delta_arrow="off",
        help="Replay of the policy against replay of first come, first served: like against like. "
        "Below it the 90% interval of a bootstrap over the requests.",
    )
    columns[1].metric(
        "From", formatting.span(gain.fcfs.mean_ttlt_s), help="Mean TTLT, replayed first come, first served"
    )
    columns[2].metric("To", formatting.span(gain.modelled.mean_ttlt_s), help="Mean TTLT, replayed under the policy")
    columns[3].metric(
        "Recompute tax saved",
        gain_text.tax_saved(gain.fcfs_tax, gain.tax),
        delta=gain_text.tax_change(gain.fcfs_tax, gain.tax),
        delta_color="off",
        delta_arrow="off",
        help="Tokens that are not computed twice, because fewer requests are preempted",
    )
    columns[4].metric(
        "Requests that lose",
        formatting.percent(each.slower),
        delta=f"{formatting.percent(each.faster)} gain",
        delta_color="off",
        delta_arrow="off",
        help="End more than a tenth later, or sooner, than first come, first served",
    )


def _trust(gain: Gain) -> None:
    found = gain.reproduction
    if found.poor:
        components.show(gain_text.poor_replay_notice(found))
    else:
        st.caption(gain_text.good_replay(found))


def _parts(parts: Sequence[GainPart]) -> None:
    if not parts:
        st.caption("No part of the requests is large enough to say anything of it alone.")
        return
    st.dataframe(
        {
            "By": [part.by for part in parts],
            "Is": [part.name for part in parts],
            "Requests": [part.requests for part in parts],
            "First come (s)": [part.fcfs_mean_ttlt_s for part in parts],
            "Policy (s)": [part.mean_ttlt_s for part in parts],
            "Change": [gain_text.ratio_change(part.ratio.mean) for part in parts],
            "90% interval": [gain_text.interval(part.ratio) for part in parts],
            "Verdict": [gain_text.part_verdict(part.ratio) for part in parts],
        },
        key="gain_table",
        hide_index=True,
        placeholder=formatting.DASH,
        height="content",
        column_config={name: st.column_config.NumberColumn(format="%.2f") for name in ("First come (s)", "Policy (s)")},
    )
