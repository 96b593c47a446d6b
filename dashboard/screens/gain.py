"""The page *Gain*: how far to trust the comparison with first come, first served, what the order brings, and which requests lose."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import streamlit as st

from dashboard.charts import figures
from dashboard.charts import gain as gain_charts
from dashboard.data import live
from dashboard.screens import components, prompts
from dashboard.text import gain as gain_text
from dashboard.text import words
from store import formatting
from store.http_api import Gain, GainPart, GainView, ObjectiveGain, StateView
from store.reading.scope import Scope

REFRESH_S = 5.0
"""The comparison itself is made every half minute or less often."""


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Gain")
    st.caption("The latest requests of the busiest engine, replayed in both orders. The filters do not apply here.")
    components.live(_live, REFRESH_S)


def _live() -> None:
    state = components.answered(live.state())
    answer = live.last_gain() if state is None else components.answered(live.gain())
    if state is None:
        _past(answer)
    if answer is None:
        return
    gain = answer.gain
    if gain is None:
        components.show(gain_text.gain_notice(answer))
        return
    gain = msgspec.structs.replace(gain, parts=prompts.named(gain.parts, Scope()))
    mode = gain.reproduction.mode if state is None else words.in_force(state.engines)
    components.show(gain_text.gain_verdict(gain, mode))
    _figures(gain)
    if not gain.reproduction.poor:
        st.caption(gain_text.trust(gain.reproduction))
    _objectives(gain.objectives, state)
    left, right = st.columns(2)
    with left:
        figure = figures.gain(gain, in_force=mode not in {"shadow", "off"})
        components.chart("Time to last token", figure, "gain_ttlt", "Measured, and both replays.")
    with right:
        components.chart(
            "Where it gains and where it loses",
            gain_charts.parts(gain.parts),
            "gain_parts",
            "Mean TTLT against first come, first served, with 90% intervals; left is faster.",
        )
    _parts(gain.parts)
    st.caption(gain_text.gain_method(gain))


def _past(answer: GainView | None) -> None:
    """Say from when the comparison is that is still shown while the controller is gone."""
    if answer is not None and answer.computed_s is not None:
        st.caption(f"The last comparison that the controller gave, from {components.moment(answer.computed_s)}.")
    else:
        path = live.store_path()
        store = "" if path is None else f" --store {path}"
        st.caption(f"Without a controller the history can be replayed by {words.code(f'sagesched replay{store}')}.")


def _figures(gain: Gain) -> None:
    each, poor = gain.per_request, bool(gain.reproduction.poor)
    columns = st.columns(6)
    columns[0].metric(
        "Mean TTLT, estimated" if poor else "Mean TTLT",
        gain_text.ratio_change(gain.ratio.mean),
        delta=gain_text.interval(gain.ratio),
        delta_color="off",
        delta_arrow="off",
        help="Replay under the policy against replay first come, first served. "
        "Below it the 90% interval of a bootstrap over the requests.",
    )
    before, after = gain.fcfs.p99_ttlt_s, gain.modelled.p99_ttlt_s
    columns[1].metric(
        "P99 TTLT, estimated" if poor else "P99 TTLT",
        gain_text.ratio_change(after / before if before else None),
        delta=f"{formatting.span(before)} to {formatting.span(after)}",
        delta_color="off",
        delta_arrow="off",
        help="99th percentile, replay against replay",
    )
    columns[2].metric("Mean measured", formatting.span(gain.actual.mean_ttlt_s), help="What these requests really took")
    columns[3].metric(
        "Mean under FCFS", formatting.span(gain.fcfs.mean_ttlt_s), help="Replayed first come, first served"
    )
    columns[4].metric(
        "Faster / slower",
        f"{formatting.percent(each.faster)} / {formatting.percent(each.slower)}",
        delta=f"{formatting.percent(max(0.0, 1.0 - each.faster - each.slower))} about the same",
        delta_color="off",
        delta_arrow="off",
        help="Requests that end more than a tenth sooner, or later, than first come, first served",
    )
    columns[5].metric(
        "Recompute saved",
        gain_text.tax_saved(gain.fcfs_tax, gain.tax),
        delta=gain_text.tax_change(gain.fcfs_tax, gain.tax),
        delta_color="off",
        delta_arrow="off",
        help="Tokens that are not computed a second time, because fewer requests are preempted",
    )


def _objectives(found: Sequence[ObjectiveGain], state: StateView | None) -> None:
    """What each objective would bring, and how to choose another."""
    said = gain_text.advice(found)
    if not said:
        return
    st.markdown("## Objectives compared", help="The same requests replayed under each objective of the policy.")
    cure = "" if state is None else " Set it with `policy.objective` in the configuration."
    st.markdown(said + cure)
    st.dataframe(
        {
            "Objective": [f"{one.objective} (in use)" if one.in_use else one.objective for one in found],
            "Mean TTLT (s)": [one.latency.mean_ttlt_s for one in found],
            "P50 TTLT (s)": [one.latency.p50_ttlt_s for one in found],
            "P99 TTLT (s)": [one.latency.p99_ttlt_s for one in found],
            "Longest (s)": [one.max_ttlt_s for one in found],
            "P99 TTFT (s)": [one.p99_ttft_s for one in found],
        },
        key="gain_objectives",
        hide_index=True,
        height="content",
        column_config={
            name: st.column_config.NumberColumn(format="%.2f")
            for name in ("Mean TTLT (s)", "P50 TTLT (s)", "P99 TTLT (s)", "Longest (s)", "P99 TTFT (s)")
        },
    )


def _parts(parts: Sequence[GainPart]) -> None:
    if not parts:
        st.caption("No group of requests is large enough to say anything of it alone.")
        return
    st.dataframe(
        {
            "Group": [gain_text.part_name(part) for part in parts],
            "Requests": [part.requests for part in parts],
            "FCFS (s)": [part.fcfs_mean_ttlt_s for part in parts],
            "SageSched (s)": [part.mean_ttlt_s for part in parts],
            "Change": [gain_text.ratio_change(part.ratio.mean) for part in parts],
            "90% interval": [gain_text.interval(part.ratio) for part in parts],
            "Verdict": [gain_text.part_verdict(part.ratio) for part in parts],
        },
        key="gain_table",
        hide_index=True,
        placeholder=formatting.DASH,
        height="content",
        column_config={
            "Group": st.column_config.TextColumn(width="medium"),
            "Requests": st.column_config.NumberColumn(format="localized"),
            **{name: st.column_config.NumberColumn(format="%.2f") for name in ("FCFS (s)", "SageSched (s)")},
        },
    )
