import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.monitoring.request_metrics import CLASSES, CLUSTERS, LABEL_BYTES, TENANTS, bounded_label
from controller.monitoring.request_tracker import TrackedRequest
from store.entries import Prediction, Promised
from store.records import Arrived, Finished, Targets


def finished(**changes: Any) -> Finished:
    facts = {
        "request_id": "r",
        "time_s": 110.0,
        "reason": "stop",
        "arrival_s": 100.0,
        "prompt_tokens": 70,
        "output_tokens": 11,
        "max_tokens": 50,
        "cached_prompt_tokens": 0,
        "preemptions": 0,
        "recomputed_tokens": 0,
        "scheduled_s": 104.0,
        "first_token_s": 105.0,
    }
    return Finished(**facts | changes)


def tracked(number: int, **changes: Any) -> TrackedRequest:
    arrived = Arrived(
        request_id="r",
        arrival_s=100.0,
        prompt_tokens=70,
        token_ids=b"",
        max_tokens=50,
        temperature=1.0,
        **{"tenant": f"tenant-{number}", "priority": number} | changes,
    )
    prediction = Prediction(
        request_id="r",
        time_s=100.0,
        cluster=number,
        features=b"",
        prompt_hash="h",
        mean_tokens=1.0,
        p10_tokens=1,
        p25_tokens=1,
        p50_tokens=1,
        p75_tokens=1,
        p90_tokens=1,
        p95_tokens=1,
        p99_tokens=1,
        evidence=1.0,
        experts={},
        predict_s=0.001,
    )
    return TrackedRequest("e", arrived=arrived, prediction=prediction)


def values(metrics: Metrics, name: str) -> dict[str, float]:
    """Value by labels of every series of a name."""
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", metrics.page().decode(), re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def count(metrics: Metrics, engine: str, fact: Finished, *others: Any) -> None:
    """Count a request of whose end the controller hears at once."""
    metrics.count_finished(engine, fact, *others, now_s=fact.time_s)


@pytest.mark.slow
def test_labels_that_clients_make_up_are_capped() -> None:
    """However many tenants, clusters, classes and engines come, series are bounded and no request is left out."""
    metrics = Metrics(Live())
    for number in range(400):
        count(metrics, f"engine-{number}", finished(), tracked(number), "m")
    for name, limit in (("tenant", TENANTS), ("cluster", CLUSTERS), ("class", CLASSES)):
        counted = values(metrics, f"sagesched_{name}_ttlt_seconds_count")
        assert len(counted) == limit + 1
        assert sum(counted.values()) == 400
    assert len(values(metrics, "sagesched_ttlt_seconds_count")) == 257


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("queue", 4.0), ("prefill", 1.0), ("ttft", 5.0), ("decode", 5.0), ("ttlt", 10.0), ("tpot", 0.5)],
)
def test_the_parts_of_a_latency_are_measured(name: str, seconds: float) -> None:
    """Queue, prompt and answer of one request, in seconds."""
    metrics = Metrics(Live())
    count(metrics, "e", finished(), tracked(1), "m")
    assert values(metrics, f"sagesched_{name}_seconds_sum") == {'engine_id="e"': seconds}


def test_what_never_happened_is_not_measured() -> None:
    """A request that left the queue has neither a first token nor a time per token; one of one token has no TPOT."""
    metrics = Metrics(Live())
    count(metrics, "e", finished(scheduled_s=None, first_token_s=None, output_tokens=0, reason="abort"), None, None)
    count(metrics, "e", finished(output_tokens=1), tracked(1, tenant=None), "m")
    assert values(metrics, "sagesched_ttft_seconds_count") == {'engine_id="e"': 1.0}
    assert values(metrics, "sagesched_tpot_seconds_count") == {}
    assert values(metrics, "sagesched_tenant_ttlt_seconds_count") == {'tenant="none"': 2.0}
    assert values(metrics, "sagesched_class_ttlt_seconds_count") == {'priority="none"': 1.0, 'priority="1"': 1.0}


def test_prefix_hits_are_counted_as_expected_and_as_found() -> None:
    """Of requests that the plan looked up only, so that the two can be compared."""
    metrics = Metrics(Live())
    for changes in ({"cached_prompt_tokens": 40, "expected_cached_tokens": 48}, {"cached_prompt_tokens": 16}):
        count(metrics, "e", finished(**changes), None, None)
    page = metrics.page().decode()
    assert 'sagesched_prefix_hit_tokens_total{engine_id="e",kind="expected"} 48.0' in page
    assert 'sagesched_prefix_hit_tokens_total{engine_id="e",kind="found"} 40.0' in page


@given(st.text(st.characters(codec=None)))
def test_any_label_is_bounded_and_stays_its_own(name: str) -> None:
    """In bytes, encodable, the same each time; two long names with one head stay two."""
    label = bounded_label(name)
    assert len(label.encode()) <= LABEL_BYTES
    assert label == bounded_label(name)
    if name.isascii() and len(name) <= LABEL_BYTES:
        assert label == name
    long_name = name + LABEL_BYTES * "x"
    assert bounded_label(f"{long_name}1") != bounded_label(f"{long_name}2")


@pytest.mark.slow
def test_the_page_is_bounded_by_bytes_whatever_arrives() -> None:
    """Names of megabytes, of four bytes a character, with quotes and half a character, in every label at its limit."""
    metrics = Metrics(Live())
    for number in range(300):
        name = f"{number}" + ("\U0001f600" if number % 2 else '"\\\n\ud800') * 20_000
        request = tracked(number, tenant=name)
        count(metrics, name, finished(), request, name)
    page = metrics.page()
    assert max(len(line) for line in page.splitlines()) < 4 * LABEL_BYTES
    assert len(page) < 16 << 20


def promised(number: int, **changes: Any) -> TrackedRequest:
    request = tracked(number)
    chat = {"service_class": "chat", "targets": Targets(ttft_s=5.0, e2e_s=8.0), "objective": 0.9}
    request.promised = Promised(request_id="r", time_s=100.0, **chat | changes)
    return request


def test_attainment_is_told_by_class_and_target() -> None:
    """Each target by itself and all together; one that nobody promised anything is held to the assumed targets."""
    metrics = Metrics(Live())
    count(metrics, "e", finished(), promised(1), "m")
    count(metrics, "e", finished(time_s=107.0), promised(2), "m")
    count(metrics, "e", finished(first_token_s=None, reason="abort"), promised(3), "m")
    count(metrics, "e", finished(first_token_s=101.0, time_s=101.5, scheduled_s=100.5), tracked(4), "m")
    assumed = 'class="default (not configured)"'
    assert values(metrics, "sagesched_slo_requests_total") == {
        'class="chat",met="false"': 1.0, 'class="chat",met="true"': 1.0, f'{assumed},met="true"': 1.0,
    }  # fmt: skip
    assert values(metrics, "sagesched_slo_attainment_ratio") == {
        'class="chat",target="ttft"': 1.0, 'class="chat",target="e2e"': 0.5, 'class="chat",target="all"': 0.5,
        f'{assumed},target="ttft"': 1.0, f'{assumed},target="tpot"': 1.0, f'{assumed},target="all"': 1.0,
    }  # fmt: skip
    assert values(metrics, "sagesched_slo_missed_total") == {'cause="queued",class="chat"': 1.0}
    assert values(metrics, "sagesched_slo_objective_ratio") == {'class="chat"': 0.9, assumed: 0.95}
    count(metrics, "e", finished(arrival_s=9e3, time_s=9e3 + 9, first_token_s=9e3 + 1), promised(5), "m")
    assert values(metrics, "sagesched_slo_attainment_ratio")['class="chat",target="all"'] == 0.0, "half an hour later"


def test_tenants_are_charged_and_compared_by_weight() -> None:
    """Engine-seconds by account; twice the weight may use twice as much, and whoever was long idle does not count."""
    metrics = Metrics(Live())
    for time_s, account, weight, used_s in ((10.0, "idle", 1.0, 99.0), (900.0, "a", 2.0, 4.0), (905.0, "b", 1.0, 2.0)):
        request = promised(1, account=account, weight=weight)
        count(metrics, "e", finished(time_s=time_s), request, "m", used_s)
    count(metrics, "e", finished(time_s=911.0), promised(1, account="b", weight=1.0), "m", 0.0)
    assert values(metrics, "sagesched_tenant_service_seconds_total") == {
        'tenant="idle"': 99.0, 'tenant="a"': 4.0, 'tenant="b"': 2.0,
    }  # fmt: skip
    assert values(metrics, "sagesched_tenant_jain_index") == {"": 1.0}


def test_pauses_between_tokens_are_measured() -> None:
    """The longest of each request and its 99% quantile, where the engine tells them."""
    metrics = Metrics(Live())
    count(metrics, "e", finished(itl_max_s=0.9, itl_p99_s=0.2), None, None)
    count(metrics, "e", finished(), None, None)
    assert values(metrics, "sagesched_inter_token_seconds_sum") == {
        'engine_id="e",statistic="p99"': 0.2, 'engine_id="e",statistic="max"': 0.9,
    }  # fmt: skip


def test_one_engine_whose_clock_is_ahead_ends_no_window() -> None:
    """Attainment and fairness go by when the controller heard of an end: what came before counts, and goes in time."""
    metrics = Metrics(Live())
    for now_s, time_s, met in ((100.0, 110.0, False), (200.0, 1e11, True), (300.0, 110.0, True), (2500.0, 110.0, True)):
        fact = finished(time_s=time_s, first_token_s=time_s - 1.0, arrival_s=time_s - (4.0 if met else 30.0))
        request = promised(1, account="a", weight=1.0)
        metrics.count_finished("e", fact, request, "m", 1.0, now_s=now_s)
        told = values(metrics, "sagesched_slo_attainment_ratio")['class="chat",target="all"']
        assert told == pytest.approx({100.0: 0.0, 200.0: 1 / 2, 300.0: 2 / 3, 2500.0: 1.0}[now_s])
