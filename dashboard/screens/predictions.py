"""The page *Predictions*: how well the predicted lengths match the actual answers, now and over time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from dashboard.charts import figures
from dashboard.charts import predictions as prediction_charts
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble
from dashboard.data.predictions_archive import Event, PredictionsPast, read_predictions
from dashboard.screens import components, filters, history
from dashboard.screens.filters import Filters
from dashboard.text import words
from store import formatting
from store.http_api import CalibrationView, LearnerView
from store.http_requests import FinishedPoint
from store.reading.scope import Scope

COMPARED = 5_000
"""Number of latest requests fetched."""


def page() -> None:
    """Draw the page: the live part asks the controller, what is over time comes from the history."""
    st.title("Predictions")
    st.caption("Output lengths as predicted on arrival, against the actual ones.")
    wanted = filters.chosen()
    _live(wanted)
    st.fragment(partial(_recorded, wanted), run_every=history.refresh_s(wanted))()


@st.fragment(run_every=live.REFRESH_S)
def _live(wanted: Filters) -> None:
    state = components.answered(live.state())
    if state is None:
        return
    _totals(state.learner)
    _models(state.learner)
    missing = words.no_prediction_notice(state.learner)
    if missing is not None:
        components.show(missing)
    if not wanted.is_live:
        return
    ended = components.answered(live.finished(wanted.live_s, COMPARED, wanted.asked))
    if ended is not None:
        _compared(ended.finished, f"within the last {wanted.range_name}")


def _compared(points: Sequence[FinishedPoint], when: str) -> None:
    """Prediction against outcome, request by request."""
    scatter, histogram = st.columns([3, 2])
    with scatter:
        components.chart(
            "Predicted against actual",
            figures.predicted_against_actual(points),
            "predictions_scatter",
            f"The latest {figures.SCATTER_POINTS} requests that ended {when}. On the dashed line the median was right.",
        )
    with histogram:
        components.chart(
            "Calibration (PIT)",
            figures.pit(points),
            "predictions_pit",
            "Flat is well calibrated; a hump is too cautious, raised ends are too sure, a slope is bias.",
        )


def _recorded(wanted: Filters) -> None:
    path = live.store_path()
    if path is None:
        return
    found = _read(str(path), history.scope(wanted))
    if isinstance(found, ArchiveTrouble):
        components.show(words.archive_notice(found.kind, found.detail))
        return
    if found.newest_s is None:
        components.show(words.empty_store_notice())
        return
    if not wanted.is_live:
        _compared(found.points, "last in this range")
    _over_time(wanted, found)
    _events(found.events)


@st.cache_resource(ttl=history.KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> PredictionsPast | ArchiveTrouble:
    return read_predictions(Path(path), wanted)


def _over_time(wanted: Filters, found: PredictionsPast) -> None:
    st.subheader("Over time")
    st.caption(f"{history.described(wanted, found.newest_s)} Per {formatting.span(found.bucket_s)}.")
    zone = components.zone()
    columns = st.columns(2)
    with columns[0]:
        figure = prediction_charts.crps(found.quality, found.events, zone)
        components.chart(
            "CRPS", figure, "predictions_crps", "Mean distance between prediction and outcome; lower is better."
        )
    with columns[1]:
        figure = prediction_charts.coverage(found.quality, zone)
        components.chart("Coverage", figure, "predictions_coverage", "Dashed: where calibrated predictions would be.")
    figure = prediction_charts.weights(found.weights, found.events, zone)
    components.chart(
        "Weights of the experts", figure, "predictions_weights", "Mean weight of each expert in the predictions."
    )


def _events(events: Sequence[Event]) -> None:
    st.markdown("##### What changed")
    if not events:
        st.caption("No drift, no change of clusters and no loss of trust in this range.")
        return
    st.caption("Drifts of lengths, changes of clusters, and trust lost or regained. Newest first.")
    st.dataframe(
        {
            "When": [components.moment(event.time_s) for event in events],
            "What": [event.kind for event in events],
            "Model": [event.model for event in events],
            "Cluster": [event.cluster for event in events],
            "In words": [event.what for event in events],
        },
        key="predictions_events",
        hide_index=True,
        placeholder=formatting.DASH,
        height=min(38 + 35 * len(events), 300),
        column_config={"In words": st.column_config.TextColumn(width="large")},
    )


def _totals(learner: LearnerView) -> None:
    columns = st.columns(6)
    columns[0].metric("Predictions", formatting.count(learner.predictions))
    columns[1].metric("Completed", formatting.count(learner.completions))
    columns[2].metric(
        "Cut short",
        formatting.count(learner.censored),
        help="Aborted or at max_tokens: learned as a lower bound of the length",
    )
    columns[3].metric(
        "Coverage of 50%",
        formatting.percent(learner.coverage_50),
        help="Share of outcomes within the central 50% range; ideal is 50%",
    )
    columns[4].metric(
        "Coverage of 90%",
        formatting.percent(learner.coverage_90),
        help="Share of outcomes within the central 90% range; ideal is 90%",
    )
    columns[5].metric(
        "CRPS (tokens)",
        formatting.count(learner.crps_tokens),
        help="Mean distance between prediction and outcome; lower is better",
    )


def _models(learner: LearnerView) -> None:
    """One row for each model; nothing before the first measurement."""
    if not learner.models:
        return
    st.subheader("By model")
    st.caption("Over the latest answers of each. Not trusted: its engines serve first come, first served until it is.")
    rows = [
        {
            "Model": model.model,
            "Trusted": "yes" if model.trusted else "no",
            "Answers": formatting.count(model.answers),
            "Coverage of 50%": formatting.percent(model.coverage_50),
            "Coverage of 90%": formatting.percent(model.coverage_90),
            "CRPS (tokens)": formatting.count(model.crps_tokens),
            "Log score over the prior's": _gain(model),
        }
        for model in learner.models
    ]
    st.dataframe(rows, key="predictions_models", hide_index=True)


def _gain(model: CalibrationView) -> str:
    return f"{model.log_score - model.prior_log_score:+.2f} nats"
