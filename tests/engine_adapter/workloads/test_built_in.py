"""The built-in workloads without texts are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.workloads.beside_others import BATCH_PRIORITY, IN_FLIGHT, LARGE, SMALL, SMALL_ALONE
from engine_adapter.workloads.built_in import BUILT_IN, LONG_PROMPT_TOKENS, SESSIONS
from engine_adapter.workloads.requests import BenchTrace, bench_trace
from store.errors import WorkloadError


def trace(
    name: str, *, requests: int = 300, warmup: int = 40, seed: int = 5, kv_tokens: int | None = None
) -> BenchTrace:
    """The workload of a name."""
    return bench_trace(name, requests=requests, warmup=warmup, seed=seed, kv_tokens=kv_tokens, closed_loops=True)


def shared_tokens(one: TraceRequest, other: TraceRequest) -> int:
    """Length of the common beginning of two prompts."""
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), len(one.token_ids))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_seed_gives_the_same_requests_again(name: str) -> None:
    """And another seed others; ids are unique over warm-up and measured requests."""
    first = trace(name, requests=60, warmup=20)
    assert first == trace(name, requests=60, warmup=20)
    assert first != trace(name, requests=60, warmup=20, seed=6)
    assert len({request.request_id for request in first.warmup + first.measured}) == 80


def test_an_application_s_prompts_share_their_beginning_and_no_more() -> None:
    """8,192 tokens of all, or 4,096 of every other one."""
    requests = trace("prefix-8k").measured
    assert {shared_tokens(requests[0], request) for request in requests[1:]} == {8_192}
    assert 8_400 < np.median([len(request.token_ids) for request in requests]) < 8_600
    assert 120 < np.median([request.true_output_tokens for request in requests]) < 180
    pairs = [
        shared_tokens(requests[0], request)
        for requests in [trace("prefix-4k-two").measured]
        for request in requests[1:]
    ]
    assert set(pairs) == {0, 4_096}
    assert 0.35 < np.mean(np.array(pairs) == 0) < 0.65


def test_a_long_prompt_comes_every_minute_among_short_ones_every_second() -> None:
    """At the workload's own times."""
    found = trace("long-prompts", requests=610)
    assert found.timed
    long = [request.arrival_s for request in found.measured if len(request.token_ids) == LONG_PROMPT_TOKENS]
    assert np.diff(long) == pytest.approx(60.0)
    assert max(len(request.token_ids) for request in found.measured if request.arrival_s not in long) < 2_000
    assert found.measured[-1].arrival_s == pytest.approx(600.0, rel=0.15)


def test_a_session_s_call_continues_the_one_before_it() -> None:
    """48 sessions; the first prompts are long, the others add 300 tokens after about a second."""
    measured = trace("sessions", requests=200).measured
    firsts, calls = measured[:SESSIONS], measured[SESSIONS:]
    assert {len(request.token_ids) for request in firsts} == {10_000}
    assert {len(request.token_ids) for request in calls} == {300}
    assert [request.continues for request in calls] == [request.request_id for request in measured[: len(calls)]]
    assert 0.6 < np.median([request.pause_s for request in calls]) < 1.6
    assert all(request.continues is None for request in firsts)


def test_the_calls_of_a_session_say_which_it_is() -> None:
    """Its first one and those that continue it."""
    measured = trace("sessions", requests=200).measured
    assert [request.session for request in measured] == [request.tenant for request in measured]
    assert len({request.session for request in measured}) == SESSIONS


def test_a_large_tenant_keeps_jobs_in_flight_after_a_small_one_was_alone() -> None:
    """A job follows another's end with a prompt of its own; the small tenant asks about once a second throughout."""
    measured = trace("tenants", requests=900).measured
    jobs = [request for request in measured if request.tenant == LARGE]
    alone = [request for request in measured if request.tenant == SMALL_ALONE]
    beside = [request for request in measured if request.tenant == SMALL]
    assert (len(jobs), len(alone), len(beside)) == (200, 200, 500)
    assert len({request.arrival_s for request in jobs[:IN_FLIGHT]}) == 1
    assert alone[-1].arrival_s < jobs[0].arrival_s == beside[0].arrival_s
    assert [job.continues for job in jobs[IN_FLIGHT:]] == [job.request_id for job in jobs[:-IN_FLIGHT]]
    assert all(job.own_prompt and len(job.token_ids) == 8_000 for job in jobs[IN_FLIGHT:])
    assert beside[-1].arrival_s == pytest.approx(700.0, rel=0.15)


def test_two_tenants_with_a_backlog_keep_jobs_in_flight_each_on_its_own() -> None:
    """Nobody's job waits for another tenant's to end."""
    measured = trace("tenants-backlog", requests=300).measured
    by_id = {request.request_id: request for request in measured}
    follow = [(request, by_id[request.continues]) for request in measured if request.continues]
    assert len(follow) == 300 - 2 * IN_FLIGHT
    assert all(request.tenant == before.tenant for request, before in follow)


def test_a_batch_stands_beside_interactive_requests() -> None:
    """All of it at the start, behind them by its priority."""
    measured = trace("batch-interactive", requests=1_500).measured
    batch = [request for request in measured if request.priority == BATCH_PRIORITY]
    assert len(batch) == 500
    assert {request.arrival_s for request in batch} == {0.0}
    assert max(request.arrival_s for request in measured) == pytest.approx(1_000.0, rel=0.15)


def test_a_closed_loop_is_refused_where_arrivals_do_not_follow_ends() -> None:
    """The message says where it can be used."""
    with pytest.raises(WorkloadError, match="sessions is a closed loop, which bench and sweep serve"):
        bench_trace("sessions", requests=100, warmup=0, seed=1)


def test_a_profile_without_room_is_named_with_one_that_has_it() -> None:
    """Long prompts would otherwise be left out in silence."""
    with pytest.raises(WorkloadError, match="room for 24000: use a larger one, such as h800-qwen3-32b-480k"):
        trace("long-prompts", kv_tokens=24_000)


def test_heavy_tailed_answers_and_classes_come_with_texts() -> None:
    """Answers as long as those of reasoning models; long tasks behind interactive ones."""
    lengths = [request.true_output_tokens for request in trace("synthetic:heavy-tail", requests=3000).measured]
    p50, p99 = np.percentile(lengths, (50, 99))
    assert 180 < p50 < 300
    assert p99 > 6_000
    classes = trace("classes", requests=1000)
    by_class = {
        priority: [row.response_len_tokens for row in classes.measured_rows if row.priority == priority]
        for priority in (0, 10)
    }
    assert len(by_class[0]) + len(by_class[10]) == 1000
    assert np.mean(by_class[10]) > 2 * np.mean(by_class[0])
