"""The page *Predictions*: how well the predicted lengths match the answers that came."""

from __future__ import annotations

import streamlit as st

from dashboard import figures, filters, live, words
from dashboard.filters import Filters
from dashboard.views import LearnerView, ModelCalibrationView


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Predictions")
    st.caption("Output lengths as predicted on arrival, against those that came.")
    _live(filters.chosen())


@st.fragment(run_every=live.REFRESH_S)
def _live(wanted: Filters) -> None:
    state = live.answered(live.state())
    if state is None:
        return
    _totals(state.learner)
    _models(state.learner)
    missing = words.no_prediction_notice(state.learner)
    if missing is not None:
        live.show(missing)
    recent = live.answered(live.recent(state.controller, wanted.live_s))
    if recent is None:
        return
    points = [point for point in recent.finished if not wanted.hides(state.engines, point.engine_id)]
    ended = live.settled(points, state.controller.now_s)
    scatter, histogram = st.columns([3, 2])
    with scatter:
        live.chart(
            "Predicted against actual",
            figures.predicted_against_actual(ended),
            "predictions_scatter",
            f"The latest {figures.SCATTER_POINTS} requests that ended within the last {words.span(wanted.live_s)}. On the dashed line the median was right.",
        )
    with histogram:
        live.chart(
            "Calibration (PIT)",
            figures.pit(ended),
            "predictions_pit",
            "Flat is well calibrated; a hump is too cautious, raised ends are too sure, a slope is bias.",
        )


def _totals(learner: LearnerView) -> None:
    columns = st.columns(6)
    columns[0].metric("Predictions", words.count(learner.predictions))
    columns[1].metric("Completed", words.count(learner.completions))
    columns[2].metric(
        "Cut short", words.count(learner.censored), help="Aborted or at max_tokens: learnt as at least so long"
    )
    columns[3].metric(
        "Coverage of 50 %",
        words.percent(learner.coverage_50),
        help="Share of outcomes within the central 50 % range; ideal is 50 %",
    )
    columns[4].metric(
        "Coverage of 90 %",
        words.percent(learner.coverage_90),
        help="Share of outcomes within the central 90 % range; ideal is 90 %",
    )
    columns[5].metric(
        "CRPS (tokens)",
        words.count(learner.crps_tokens),
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
            "Answers": words.count(model.answers),
            "Coverage of 50 %": words.percent(model.coverage_50),
            "Coverage of 90 %": words.percent(model.coverage_90),
            "CRPS (tokens)": words.count(model.crps_tokens),
            "Log score over the prior's": _gain(model),
        }
        for model in learner.models
    ]
    st.dataframe(rows, key="predictions_models", hide_index=True)


def _gain(model: ModelCalibrationView) -> str:
    if model.log_score is None or model.prior_log_score is None:
        return words.DASH
    return f"{model.log_score - model.prior_log_score:+.2f} nats"
