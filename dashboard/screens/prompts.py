"""The page *Prompts*: groups of similar prompts, what they are like, and how long their answers are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import streamlit as st

from dashboard.charts import prompts as prompt_charts
from dashboard.data import live, prompts_archive
from dashboard.data.archive import ArchiveTrouble
from dashboard.data.prompts_archive import Cluster, ClusterDetail, Likeness, Prompts
from dashboard.screens import components, filters, history, request
from dashboard.screens.filters import Filters
from dashboard.text import prompts as text
from dashboard.text import words
from store import formatting
from store.http_api import GainPart
from store.http_requests import PartLatency
from store.reading.scope import Scope

REFRESH_S = 15.0
KEPT_S = 10.0
NAMES_KEPT_S = 60.0
"""How long other pages call clusters by the same names."""
_CHOSEN = "prompts_cluster"
Group = TypeVar("Group", GainPart, PartLatency)


def page() -> None:
    """Draw the page; it reads the store, so it also works while the controller is down."""
    st.title("Prompts")
    components.live(partial(_live, filters.chosen()), REFRESH_S)


def _live(wanted: Filters) -> None:
    scope = history.scope(wanted)
    found = components.from_history(lambda path: _read(path, scope))
    if found is None or not components.any_ended(found.ended, found.newest_s):
        return
    if not found.clusters:
        components.show(words.no_clusters_notice())
        return
    st.markdown(text.verdict(found.clusters))
    st.caption(
        "A cluster is a group of similar prompts: its answers so far predict the next ones. "
        f"{history.described(wanted, found.since_s, found.until_s)}"
    )
    _overview(found)
    _table(found.clusters)
    _near(str(live.store_path()), scope, found.clusters)


@st.cache_resource(ttl=KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, scope: Scope) -> Prompts | ArchiveTrouble:
    return prompts_archive.read_prompts(Path(path), scope)


def named(parts: Iterable[Group], scope: Scope) -> tuple[Group, ...]:
    """Groups of requests with each cluster called by what it is like, where the history says that."""
    every, path = tuple(parts), live.store_path()
    if path is None or all(part.by != "cluster" for part in every):
        return every
    found = _read_likenesses(str(path), scope)
    names = {} if isinstance(found, ArchiveTrouble) else text.names_by_number(found)
    return tuple(
        msgspec.structs.replace(part, name=names.get(part.name, part.name)) if part.by == "cluster" else part
        for part in every
    )


@st.cache_resource(ttl=NAMES_KEPT_S, max_entries=16, show_spinner=False)
def _read_likenesses(path: str, scope: Scope) -> tuple[Likeness, ...] | ArchiveTrouble:
    return prompts_archive.read_likenesses(Path(path), scope)


@st.cache_resource(ttl=KEPT_S, max_entries=32, show_spinner=False)
def _read_cluster(path: str, scope: Scope, model: str, cluster: int) -> ClusterDetail | ArchiveTrouble:
    return prompts_archive.read_cluster(Path(path), scope, model, cluster)


def _overview(found: Prompts) -> None:
    left, right = st.columns(2)
    names = text.short_names(found.clusters)
    with left:
        note = f"Typical prompt → answer in tokens, tenant, number. Boxes from 25 to 75%, whiskers from 10 to 90%; the {prompt_charts.BOXES} largest clusters."
        components.chart("How long answers are", prompt_charts.lengths(found.clusters, names), "prompts_lengths", note)
    with right:
        note = f"Mean weights in the latest {formatting.count(prompts_archive.LATEST_PREDICTIONS)} predictions."
        components.chart(
            "Expert weights", prompt_charts.weights(found.weights, found.clusters, names), "prompts_weights", note
        )


def _table(clusters: tuple[Cluster, ...]) -> None:
    several = len({cluster.model for cluster in clusters}) > 1
    st.dataframe(
        {
            "Cluster": [text.name(cluster) for cluster in clusters],
            **({"Model": [cluster.model for cluster in clusters]} if several else {}),
            "Answers": [cluster.answers for cluster in clusters],
            "Truncated": [cluster.censored for cluster in clusters],
            "Mean": [cluster.mean_tokens for cluster in clusters],
            "Median": [cluster.quantiles[2] for cluster in clusters],
            "90%": [cluster.quantiles[4] for cluster in clusters],
            "99%": [cluster.quantiles[5] for cluster in clusters],
            "Inside 90% range": [formatting.percent(cluster.coverage_90) for cluster in clusters],
            "Mean error (CRPS)": [cluster.crps_tokens for cluster in clusters],
            "Drifts": [cluster.drifts for cluster in clusters],
            "Last drift": [cluster.last_drift for cluster in clusters],
        },
        key="prompts_clusters",
        hide_index=True,
        placeholder=formatting.DASH,
        height=min(38 + 35 * len(clusters), 300),
        column_config={
            **{
                name: st.column_config.NumberColumn(format="%.0f")
                for name in ("Mean", "Median", "90%", "99%", "Mean error (CRPS)")
            },
            "Cluster": st.column_config.TextColumn(width=470),
            "Answers": st.column_config.NumberColumn(format="localized"),
            "Truncated": st.column_config.NumberColumn(
                format="localized", help="Aborted or at max_tokens: only a lower bound of the length is known"
            ),
        },
    )


def _near(path: str, scope: Scope, clusters: tuple[Cluster, ...]) -> None:
    st.markdown("## One cluster")
    named = {(cluster.model, cluster.cluster): text.name(cluster) for cluster in clusters}
    names = list(named)
    if st.session_state.get(_CHOSEN) not in names:
        st.session_state.pop(_CHOSEN, None)
    several = len({model for model, _ in names}) > 1
    narrow, _ = st.columns([1, 1])
    chosen = narrow.selectbox(
        "Cluster",
        names,
        key=_CHOSEN,
        format_func=lambda name: f"{named.get(name, name[1])}, {name[0]}" if several else str(named.get(name, name[1])),
    )
    detail = _read_cluster(path, scope, *chosen)
    if isinstance(detail, ArchiveTrouble):
        components.show(words.archive_notice(detail.kind, detail.detail))
        return
    left, right = st.columns(2)
    with left:
        components.chart("Answer lengths", prompt_charts.histogram(detail.lengths), "prompts_histogram")
    with right:
        figure = prompt_charts.drift(detail.over_time, detail.drifts, detail.changes, components.zone())
        components.chart("Lengths over time", figure, "prompts_drift")
    _samples(detail)


def _samples(detail: ClusterDetail) -> None:
    st.markdown("## Latest requests of the cluster")
    stored = any(sample["Prompt (token ids)"] for sample in detail.samples)
    st.caption(
        "Select a row to see the whole request."
        + ("" if stored else " Prompts themselves are not stored (`store.prompts` is off).")
    )
    columns = [name for name in (detail.samples[0] if detail.samples else {}) if stored or name != "Prompt (token ids)"]
    request.choosable(
        {name: [sample[name] for sample in detail.samples] for name in columns},
        [sample["Request"] for sample in detail.samples],
        key="prompts_samples",
        height="content",
    )
