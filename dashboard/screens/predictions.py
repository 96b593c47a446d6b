"""The page *Predictions*: whether the predicted lengths can be relied on, and the statistics behind that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from dashboard.charts import figures
from dashboard.charts import predictions as prediction_charts
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble
from dashboard.data.client import Trouble
from dashboard.data.predictions_archive import Event, PredictionsPast, read_predictions
from dashboard.screens import components, filters, history
from dashboard.screens.filters import Filters
from dashboard.text import predictions as text
from dashboard.text import words
from store import formatting
from store.http_api import CalibrationView, LearnerView
from store.http_requests import FinishedPoint
from store.reading.scope import Scope

COMPARED = 5_000
"""Number of latest requests fetched."""


def page() -> None:
    """Draw the page: verdict and figures for operators first, statistics below; over time from the history."""
    st.title("Predictions")
    st.caption("How many output tokens were predicted when a request arrived, against how many it generated.")
    wanted = filters.chosen()
    components.live(partial(_live, wanted), live.REFRESH_S)
    components.live(partial(_recorded, wanted), history.refresh_s(wanted))


def _live(wanted: Filters) -> None:
    """Verdict and comparison of the last minutes, as the controller knows them."""
    state = components.answered(live.state())
    if state is None:
        return
    missing = words.no_prediction_notice(state.learner)
    if missing is not None:
        components.show(missing)
        return
    distrusted = [model for model in state.learner.models if not model.trusted]
    if distrusted:
        components.show(text.distrusted_notice(distrusted))
    if not wanted.is_live:
        return
    ended = components.answered(live.finished(wanted.live_s, COMPARED, wanted.asked))
    if ended is not None and ended.finished:
        _compared(ended.finished)


def _compared(points: Sequence[FinishedPoint]) -> None:
    """Prediction against outcome, request by request: the verdict, figures, and two charts."""
    found = text.accuracy(points)
    components.show(text.verdict(found))
    _figures(found)
    scatter, histogram = st.columns([3, 2])
    with scatter:
        components.chart(
            "Predicted against actual",
            figures.predicted_against_actual(points),
            "predictions_scatter",
            f"The latest {figures.SCATTER_POINTS} requests of the range. On the dashed line the median was right.",
        )
    with histogram:
        components.chart(
            "How far off predictions are",
            prediction_charts.errors(found.ratios),
            "predictions_errors",
            "Answers that ended, by their actual length over the predicted median; 1 is exact.",
        )


def _recorded(wanted: Filters) -> None:
    state = live.state()
    found = components.from_history(lambda path: _read(path, history.scope(wanted)))
    if found is not None and components.any_ended(len(found.points), found.newest_s):
        if not wanted.is_live or isinstance(state, Trouble):
            _compared(found.points)
        _statistics(wanted, found)
        _events(found.events)
    if not isinstance(state, Trouble):
        _learner(state.learner)
        _models(state.learner)


@st.cache_resource(ttl=history.KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> PredictionsPast | ArchiveTrouble:
    return read_predictions(Path(path), wanted)


def _statistics(wanted: Filters, found: PredictionsPast) -> None:
    st.markdown("## Statistics")
    described = history.described(wanted, found.since_s, found.until_s)
    st.caption(f"{described} Over time per {formatting.span(found.bucket_s)}.")
    zone, span = components.zone(), (found.since_s, found.until_s)
    for column, (title, figure, key, note) in zip(
        (*st.columns(2), *st.columns(2)),
        (
            ("Prediction error", prediction_charts.crps(found.quality, found.events, zone, span), *_CRPS),
            ("Coverage", prediction_charts.coverage(found.quality, zone, span), *_COVERAGE),
            ("Calibration (PIT)", figures.pit(found.points), *_PIT),
            ("Expert weights", prediction_charts.weights(found.weights, found.events, zone, span), *_WEIGHTS),
        ),
        strict=True,
    ):
        with column:
            components.chart(title, figure, key, note)


_CRPS = (
    "predictions_crps",
    "CRPS: the mean distance between predicted distribution and actual length; lower is better.",
)
_COVERAGE = ("predictions_coverage", "Dashed: where calibrated predictions would be.")
_PIT = (
    "predictions_pit",
    "Flat is calibrated; a hump means too cautious, raised ends too confident, a slope too long or too short.",
)
_WEIGHTS = ("predictions_weights", "Mean weight of each expert in the predictions.")


def _events(events: Sequence[Event]) -> None:
    st.markdown("## What changed")
    if not events:
        st.caption("No drift, no change of clusters and no loss of trust in this range.")
        return
    st.caption("Drifts of lengths, changes of clusters, and trust lost or regained. Newest first.")
    rows = text.grouped(events)
    st.dataframe(
        {
            "When": [components.moment(members[0].time_s) for members in rows],
            "What": [members[0].kind for members in rows],
            "Model": [members[0].model or "all" for members in rows],
            "Clusters": [text.clusters(members) for members in rows],
            "Detail": [members[0].what for members in rows],
        },
        key="predictions_events",
        hide_index=True,
        placeholder=formatting.DASH,
        height=min(38 + 35 * len(rows), 300),
        column_config={"Detail": st.column_config.TextColumn(width="large")},
    )


def _figures(found: text.Accuracy) -> None:
    columns = st.columns(5)
    columns[0].metric("Answers compared", formatting.count(found.compared), help="Of requests with a prediction")
    columns[1].metric(
        "Half are within",
        text.typical_error(found),
        help="Difference from the predicted median, of that median",
    )
    columns[2].metric(
        "Inside the 50% range", formatting.percent(found.within_50), help="Share of answers; 50% is ideal"
    )
    columns[3].metric(
        "Inside the 90% range", formatting.percent(found.within_90), help="Share of answers; 90% is ideal"
    )
    columns[4].metric(
        "Truncated",
        formatting.count(found.truncated),
        help="Aborted or at `max_tokens`: only a lower bound of their length is known",
    )


def _learner(learner: LearnerView) -> None:
    st.markdown("## Since the controller started")
    columns = st.columns(6)
    columns[0].metric("Predictions", formatting.count(learner.predictions))
    columns[1].metric("Completed", formatting.count(learner.completions))
    columns[2].metric(
        "Truncated",
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
    st.markdown("## By model")
    st.caption("Over the latest answers of each. Not trusted: its engines serve first come, first served until it is.")
    rows = [
        {
            "Model": model.model,
            "Trusted": "yes" if model.trusted else "no",
            "Answers": formatting.count(model.answers),
            "Coverage of 50%": formatting.percent(model.coverage_50),
            "Coverage of 90%": formatting.percent(model.coverage_90),
            "CRPS (tokens)": formatting.count(model.crps_tokens),
            "Better than the prior by": _gain(model),
        }
        for model in learner.models
    ]
    st.dataframe(rows, key="predictions_models", hide_index=True)


def _gain(model: CalibrationView) -> str:
    return f"{model.log_score - model.prior_log_score:+.2f} nats"
