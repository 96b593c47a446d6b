from dataclasses import replace

import pytest

from controller.benchmark.scheduling.group_figures import TenantService, session_figures
from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.engine import CompletedRequest, TraceRequest, serve
from engine_adapter.virtual_time.profiles import profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine

PROFILE = replace(profile_named("h800-qwen3-32b-24k"), max_num_seqs=2)


def request(request_id: str, *, arrival_s: float = 0.0, output_tokens: int = 50) -> TraceRequest:
    """A request of 100 prompt tokens that nobody else has."""
    start = sum(request_id.encode()) * 1_000
    return TraceRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        token_ids=tuple(range(start, start + 100)),
        max_tokens=output_tokens,
        true_output_tokens=output_tokens,
    )


def served(requests: list[TraceRequest], tenants: dict[str, str]) -> float | None:
    """Jain's index of two places that go by arrival."""
    service = TenantService(PROFILE, tenants)
    return service.jain_index(serve(SimulatedEngine(PROFILE, link=NoLink()), requests, on_step=service.add).completed)


def test_tenants_that_are_served_alike_while_both_wait_have_an_index_of_one() -> None:
    """Each has one of two places all the time."""
    requests = [request(name) for name in ("a1", "b1", "a2", "b2", "a3", "b3")]
    assert served(requests, {one.request_id: one.request_id[0] for one in requests}) == pytest.approx(1.0)


def test_a_tenant_that_has_everything_while_both_wait_leaves_the_other_nothing() -> None:
    """Which is one half for two; what happens once only one of them waits does not count."""
    requests = [request(name) for name in ("a1", "a2", "a3", "b1", "b2", "b3")]
    tenants = {one.request_id: one.request_id[0] for one in requests}
    assert served(requests, tenants) == pytest.approx(0.5, abs=0.02)
    later = [*requests[:3], *(replace(one, arrival_s=1e3) for one in requests[3:])]
    assert served(later, tenants) is None


def test_tokens_held_and_computed_count_and_not_requests() -> None:
    """A place whose request is four times as long costs about as much a step, and its tenant has had as much as the other."""
    requests = [request("a1", output_tokens=200), *(request(name) for name in ("b1", "b2", "b3", "b4", "b5", "a2"))]
    index = served(requests, {one.request_id: one.request_id[0] for one in requests})
    assert index == pytest.approx(1.0, abs=0.05)


def ended(request_id: str, arrival_s: float, finished_s: float) -> CompletedRequest:
    """A request that was served at once."""
    return CompletedRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        scheduled_s=arrival_s,
        first_token_s=finished_s,
        finished_s=finished_s,
        prompt_tokens=5,
        output_tokens=5,
        reason="stop",
        preemptions=0,
        recomputed_tokens=0,
    )


def test_a_session_lasts_from_its_first_arrival_to_its_last_end() -> None:
    """Requests of no session count in none."""
    completed = [ended("a", 1.0, 2.0), ended("b", 5.0, 11.0), ended("c", 3.0, 7.0), ended("d", 0.0, 900.0)]
    found = session_figures(completed, {"a": "x", "b": "x", "c": "y"})
    assert found == pytest.approx((7.0, 4.0 + 0.95 * 6.0))
    assert session_figures(completed, {}) is None
