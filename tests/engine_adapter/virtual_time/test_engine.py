"""Serving a trace to its end."""

from __future__ import annotations

from dataclasses import replace

from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.engine import END_OF_SEQUENCE_ID, Step, TraceRequest, answer_token_ids, serve
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine

PROFILE = replace(PROFILES["h800-qwen3-32b-24k"], max_num_seqs=2)


def request(
    name: str, *, arrival_s: float = 0.0, output_tokens: int = 50, leaves_s: float | None = None
) -> TraceRequest:
    return TraceRequest(
        request_id=name,
        arrival_s=arrival_s,
        token_ids=tuple(range(20)),
        max_tokens=1_000,
        true_output_tokens=output_tokens,
        leaves_s=leaves_s,
    )


def test_a_client_that_leaves_ends_its_request_and_no_other() -> None:
    """At its time or at the end of the step that is under way then; a request that has ended before is let be."""
    trace = [
        request("leaves", output_tokens=500, leaves_s=1.0),
        request("waits", output_tokens=500, leaves_s=0.5),
        request("ends", output_tokens=2, leaves_s=2.0),
        request("stays"),
    ]
    lives = {life.request_id: life for life in serve(SimulatedEngine(PROFILE, link=NoLink()), trace).completed}
    assert {name: life.reason for name, life in lives.items()} == {
        "leaves": "abort",
        "waits": "abort",
        "ends": "stop",
        "stays": "stop",
    }
    assert 1.0 <= lives["leaves"].finished_s < 1.2
    assert 0.5 <= lives["waits"].finished_s < 0.7


def test_every_step_is_reported_once_and_in_order() -> None:
    """The totals are those of the reported steps."""
    steps: list[Step] = []
    totals = serve(
        SimulatedEngine(PROFILE, link=NoLink()), [request("a"), request("b", arrival_s=100.0)], on_step=steps.append
    )
    assert len(steps) == totals.steps
    assert [step.start_s for step in steps] == sorted(step.start_s for step in steps)
    assert [life for step in steps for life in step.finished] == totals.completed


def test_a_request_that_continues_another_arrives_after_its_end_with_the_whole_conversation() -> None:
    """After its pause, with prompt and answer before its own tokens, of which the prefix cache has all full blocks."""
    trace = [
        replace(request("third"), continues="second", pause_s=1.5),
        replace(request("second"), token_ids=(7, 8, 9), max_tokens=30, continues="first", pause_s=0.5),
        request("first", output_tokens=40),
        request("other", output_tokens=100),
    ]
    seen: dict[str, TraceRequest] = {}

    class Watched(SimulatedEngine):
        def submit(self, request: TraceRequest) -> None:
            seen[request.request_id] = request
            super().submit(request)

    lives = {
        life.request_id: life for life in serve(Watched(PROFILE, link=NoLink(), prefix_caching=True), trace).completed
    }
    assert lives["second"].arrival_s == lives["first"].finished_s + 0.5
    assert lives["third"].arrival_s == lives["second"].finished_s + 1.5
    first_answer = (*answer_token_ids("first")[:39], END_OF_SEQUENCE_ID)
    assert seen["second"].token_ids == (*range(20), *first_answer, 7, 8, 9)
    cut_answer = tuple(answer_token_ids("second")[:30])
    assert seen["third"].token_ids == (*seen["second"].token_ids, *cut_answer, *range(20))
    assert lives["second"].cached_prompt_tokens == 48
    assert lives["third"].cached_prompt_tokens == 80


def test_the_next_job_of_a_client_has_a_prompt_of_its_own() -> None:
    """It arrives as the one before it ends."""
    seen: dict[str, TraceRequest] = {}

    class Watched(SimulatedEngine):
        def submit(self, request: TraceRequest) -> None:
            seen[request.request_id] = request
            super().submit(request)

    trace = [request("first"), replace(request("second"), token_ids=(7, 8), continues="first", own_prompt=True)]
    totals = serve(Watched(PROFILE, link=NoLink()), trace)
    assert seen["second"].token_ids == (7, 8)
    assert seen["second"].arrival_s == totals.completed[0].finished_s


def test_nobody_continues_what_was_aborted() -> None:
    """The session is over, and the run ends."""
    trace = [request("first", output_tokens=500, leaves_s=0.5), replace(request("second"), continues="first")]
    assert [life.request_id for life in serve(SimulatedEngine(PROFILE, link=NoLink()), trace).completed] == ["first"]
