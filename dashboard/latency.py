"""The page *Latency*: how long requests take, lately or as far back as the history goes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from dashboard import figures, filters, history, live, series, words
from dashboard.archive import PARTED, Archive
from dashboard.filters import Filters
from dashboard.series import Percentiles
from dashboard.views import FinishedPoint

BINS = 30


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Latency")
    wanted = filters.chosen()
    if wanted.is_live:
        st.caption(f"Requests that ended within the last {wanted.range_name}.")
        _live(wanted)
    else:
        st.fragment(partial(_recorded, wanted), run_every=history.REFRESH_S)()


@st.fragment(run_every=live.REFRESH_S)
def _live(wanted: Filters) -> None:
    state = live.answered(live.state())
    if state is None:
        return
    recent = live.answered(live.recent(state.controller, wanted.live_s))
    if recent is None:
        return
    points = [point for point in recent.finished if not wanted.hides(state.engines, point.engine_id)]
    ended = live.settled(points, state.controller.now_s)
    bin_s = wanted.live_s / BINS
    note = f"Per {words.span(bin_s)}."
    _charts(series.ttft(ended, bin_s), series.ttlt(ended, bin_s), series.tpot(ended, bin_s), note)
    _figures(ended)


def _figures(ended: Sequence[FinishedPoint]) -> None:
    whole = [point for point in ended if series.complete(point)]
    st.caption(f"{words.count(len(whole))} ran to their end, {words.count(len(ended) - len(whole))} did not.")


def _recorded(wanted: Filters) -> None:
    archive = history.answered(wanted)
    if not isinstance(archive, Archive):
        return
    if archive.newest_s is None:
        live.show(words.empty_store_notice())
        return
    st.caption(history.described(wanted, archive))
    _charts(archive.ttft, archive.ttlt, archive.tpot, f"Per {words.span(archive.bucket_s)}.")
    _parts(archive)


def _charts(ttft: Sequence[Percentiles], ttlt: Sequence[Percentiles], tpot: Sequence[Percentiles], note: str) -> None:
    zone = live.zone()
    columns = st.columns(3)
    with columns[0]:
        live.chart("Time to first token", figures.latency(ttft, "TTFT", zone), "latency_ttft", note)
    with columns[1]:
        live.chart(
            "Time to last token",
            figures.latency(ttlt, "TTLT", zone),
            "latency_ttlt",
            f"{note} Without aborted requests.",
        )
    with columns[2]:
        live.chart(
            "Time per output token", figures.latency(tpot, "TPOT", zone), "latency_tpot", f"{note} After the first."
        )


def _parts(archive: Archive) -> None:
    st.markdown("##### By class, tenant, model and cluster")
    st.caption(f"Of the latest {words.count(PARTED)} requests of the range at most; the twenty largest of each kind.")
    if not archive.parts:
        st.caption("No request ran to its end in this range.")
        return
    st.dataframe(
        {
            "By": [part.by for part in archive.parts],
            "Is": [part.name for part in archive.parts],
            "Requests": [part.requests for part in archive.parts],
            "Median TTFT (s)": [part.p50_ttft_s for part in archive.parts],
            "Mean TTLT (s)": [part.mean_ttlt_s for part in archive.parts],
            "Median TTLT (s)": [part.p50_ttlt_s for part in archive.parts],
            "99 % TTLT (s)": [part.p99_ttlt_s for part in archive.parts],
            "Mean output": [part.mean_output_tokens for part in archive.parts],
        },
        key="latency_parts", hide_index=True, placeholder=words.DASH, height="content",
        column_config={
            **{name: st.column_config.NumberColumn(format="%.2f") for name in (
                "Median TTFT (s)", "Mean TTLT (s)", "Median TTLT (s)", "99 % TTLT (s)")},
            "Mean output": st.column_config.NumberColumn(format="%.0f", help="Tokens"),
        },
    )  # fmt: skip
