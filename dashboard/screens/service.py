"""The page *Service*: which class keeps its objective, which targets are missed and why, and what each tenant uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st

from dashboard.charts import service as charts
from dashboard.data import live
from dashboard.data.archive import ArchiveTrouble, read
from dashboard.screens import components, filters, history
from dashboard.screens.filters import Filters
from dashboard.text import service as text
from dashboard.text import words
from store import formatting
from store.http_service import ClassAttainment, Misses, ServiceView, TenantService
from store.reading.scope import Scope
from store.reading.service import JUDGED, MISSES_SHOWN, TENANTS_SHOWN, read_service
from store.service_levels import CAUSES, MEANINGS

BINS = 30
_DRAWN = "service_drawn"


def page() -> None:
    """Draw the page; everything on it is live."""
    st.title("Service")
    wanted = filters.chosen()
    if wanted.is_live:
        components.live(partial(_live, wanted), live.REFRESH_S)
    else:
        components.live(partial(_recorded, wanted), history.refresh_s(wanted))


def _live(wanted: Filters) -> None:
    """What the controller says; where it says nothing, what the history has."""
    found = components.answered(live.service(wanted.live_s, BINS, wanted.asked))
    if found is not None and found.requests:
        _page(wanted, found)
    else:
        _recorded(wanted)


def _recorded(wanted: Filters) -> None:
    found = components.from_history(lambda path: _read(path, history.scope(wanted)))
    if found is not None and components.any_ended(found.requests, found.newest_s):
        _page(wanted, found)


@st.cache_resource(ttl=history.KEPT_S, max_entries=16, show_spinner="Reading the history …")
def _read(path: str, wanted: Scope) -> ServiceView | ArchiveTrouble:
    return read(Path(path), partial(read_service, scope=wanted))


def _page(wanted: Filters, found: ServiceView) -> None:
    components.show(text.verdict(found))
    capped = f" Judged are the latest {formatting.count(JUDGED)} of them." if found.capped else ""
    st.caption(f"{history.described(wanted, found.since_s, found.until_s)}{capped}")
    _figures(found)
    key = (found, components.zone())
    # Figures are rebuilt only when there is something new in them: this runs every second.
    if st.session_state.get(_DRAWN, (None,))[0] != key:
        st.session_state[_DRAWN] = (key, _drawn(found))
    _, drawn = st.session_state[_DRAWN]
    _charts(found, drawn)
    _classes(found.classes)
    _misses(found.misses)
    _tenants(found)


def _figures(found: ServiceView) -> None:
    judged, met = sum(one.judged for one in found.classes), sum(one.met for one in found.classes)
    known = [one for one in found.classes if one.burn_rate is not None]
    worst = max(known, key=lambda one: (one.configured, one.burn_rate), default=None)
    latest = max(
        (one for one in known if one.recent_burn_rate is not None),
        key=lambda one: (one.configured, one.recent_burn_rate),
        default=None,
    )
    columns = st.columns(5)
    columns[0].metric(
        "Met all targets",
        formatting.percent(met / judged if judged else None),
        delta=f"of {formatting.count(judged)} requests",
        delta_color="off",
        delta_arrow="off",
        help="Requests whose client left before the first token are not counted; shed and failed ones missed.",
    )
    _of_class(
        *(columns[1], "Error budget left", text.budget(worst) if worst else formatting.DASH, worst),
        "What is left of the misses that the objective allows for these requests, in the class that has least.",
    )
    _of_class(
        *(columns[2], "Burn rate", text.rate(worst.burn_rate if worst else None), worst),
        "How many times as many miss as the objective allows; 1 spends the budget exactly.",
    )
    _of_class(
        *(columns[3], "Burn rate lately", text.rate(latest.recent_burn_rate if latest else None), latest),
        f"The same in the last {formatting.span(found.recent_s)}.",
    )
    columns[4].metric(
        "Jain's index",
        formatting.DASH if found.jain_index is None else f"{found.jain_index:.2f}",
        delta=f"{formatting.count(found.tenants_active)} {'tenant' if found.tenants_active == 1 else 'tenants'}",
        delta_color="off",
        delta_arrow="off",
        help="Of the tenants' engine-seconds over weight: 1 where each used its weight's part, 1/n where one used all. "
        "It is low too where some tenants simply ask for less.",
    )


def _of_class(
    column: st.delta_generator.DeltaGenerator, label: str, value: str, worst: ClassAttainment | None, meaning: str
) -> None:
    """Show a figure of one class, with the class's name."""
    name = None if worst is None else words.plain(worst.name)
    column.metric(label, value, delta=name, delta_color="off", delta_arrow="off", help=meaning)


def _drawn(found: ServiceView) -> list[go.Figure]:
    zone, span = components.zone(), (found.since_s, found.until_s)
    objectives = {one.name: one.objective for one in found.classes}
    return [
        charts.attainment(
            [point for point in found.points if point.by == "class"], found.bucket_s, objectives, zone, span
        ),
        charts.attainment([point for point in found.points if point.by == "tenant"], found.bucket_s, {}, zone, span),
        charts.causes(found.misses),
        charts.shares(found.tenants),
    ]


def _charts(found: ServiceView, drawn: Sequence[go.Figure]) -> None:
    per = f"Per {formatting.span(found.bucket_s)}."
    upper, lower = st.columns(2), st.columns(2)
    with upper[0]:
        components.chart("Attainment by class", drawn[0], "service_classes", f"{per} Dashed: the objective of each.")
    with upper[1]:
        components.chart("Attainment by tenant", drawn[1], "service_tenants", f"{per} The tenants with most requests.")
    with lower[0]:
        components.chart("Why targets are missed", drawn[2], "service_causes", "Each request by its first cause.")
    with lower[1]:
        components.chart(
            "Engine-seconds by tenant", drawn[3], "service_shares", "What each used, beside its part by weight."
        )


def _classes(classes: Sequence[ClassAttainment]) -> None:
    st.markdown("## Classes")
    by_target = [{one.target: one.met / one.judged for one in each.targets if one.judged} for each in classes]
    _table(
        {
            "Class": [each.name for each in classes],
            "Targets": [text.class_targets(each.targets) for each in classes],
            "Objective": [formatting.percent(each.objective) for each in classes],
            "Met all": [formatting.percent(each.attainment) for each in classes],
            "Judged": [each.judged for each in classes],
            "Budget left": [text.budget(each) for each in classes],
            "Burn rate": [text.rate(each.burn_rate) for each in classes],
            "Lately": [text.rate(each.recent_burn_rate) for each in classes],
            **{
                f"{name} met": [formatting.percent(shares.get(target)) for shares in by_target]
                for target, name in text.TARGET_NAMES.items()
            },
        },
        "service_class_table",
        len(classes),
    )


def _misses(misses: Sequence[Misses]) -> None:
    st.markdown("## Missed targets and their causes")
    if not misses:
        st.caption("No request missed a target.")
        return
    st.caption("; ".join(f"*{CAUSES[cause]}*: {MEANINGS[cause]}" for cause in CAUSES if _is_seen(cause, misses)) + ".")
    _table(
        {
            "Class": [miss.service_class for miss in misses],
            "Tenant": [miss.tenant for miss in misses],
            "Why": [CAUSES[miss.cause] for miss in misses],
            "Requests": [miss.requests for miss in misses],
            "Missed TTFT": [miss.ttft for miss in misses],
            "Missed TPOT": [miss.tpot for miss in misses],
            "Missed end to end": [miss.e2e for miss in misses],
        },
        "service_miss_table",
        len(misses),
    )
    if len(misses) == MISSES_SHOWN:
        st.caption(f"The {MISSES_SHOWN} most frequent are shown.")


def _is_seen(cause: str, misses: Sequence[Misses]) -> bool:
    return any(miss.cause == cause for miss in misses)


def _tenants(found: ServiceView) -> None:
    tenants: Sequence[TenantService] = found.tenants
    st.markdown("## Tenants")
    if found.tenants_active > len(tenants):
        st.caption(f"The {TENANTS_SHOWN} that used most of {formatting.count(found.tenants_active)}.")
    _table(
        {
            "Tenant": [tenant.name for tenant in tenants],
            "Weight": [tenant.weight for tenant in tenants],
            "Requests": [tenant.requests for tenant in tenants],
            "Met all": [
                formatting.percent(tenant.met / tenant.judged if tenant.judged else None) for tenant in tenants
            ],
            "Engine-seconds": [None if tenant.service_s is None else round(tenant.service_s, 2) for tenant in tenants],
            "Share": [formatting.percent(tenant.share) for tenant in tenants],
            "Fair share": [formatting.percent(tenant.fair_share) for tenant in tenants],
            "Mean queue": [formatting.span(tenant.mean_queue_s) for tenant in tenants],
            "Mean TTLT": [formatting.span(tenant.mean_ttlt_s) for tenant in tenants],
        },
        "service_tenant_table",
        len(tenants),
    )


def _table(data: dict[str, Sequence[object]], key: str, rows: int) -> None:
    st.dataframe(data, key=key, hide_index=True, placeholder=formatting.DASH, height=min(38 + 35 * rows, 300))
