"""The facts that the plugin reports of vLLM's requests, against independent accounts of the same lives."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from engine_adapter.transport.link import DirectLink
from engine_adapter.virtual_time.engine import END_OF_SEQUENCE_ID, CompletedRequest, Step, TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm.request_events import arrived
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from store.bounds import bounded_request_id
from store.records import Arrived, Facts, Finished, FirstToken, Gate, Preempted, decode_engine_message, encode

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]

PROFILE = Profile(
    name="tight",
    base_s=0.01,
    prefill_token_s=0.001,
    decode_seq_s=0.001,
    kv_token_s=0.00001,
    kv_tokens=192,
    block_size_tokens=16,
    max_num_seqs=6,
    token_budget=32,
    max_model_len_tokens=96,
)

SUMS = ("steps", "step_s", "prefill_tokens", "decode_tokens", "kv_tokens_read", "preemptions")

WORKS = st.lists(
    st.builds(
        lambda arrival, prompt, output, limit, priority, abort: (arrival, prompt, output, limit, priority, abort),
        st.floats(0.0, 0.5),
        st.integers(2, 70),
        st.integers(1, 80),
        st.integers(1, 80),
        st.integers(0, 1),
        st.none() | st.integers(1, 20),
    ),
    min_size=1,
    max_size=14,
)


def _works(drawn: list[tuple[float, int, int, int, int, int | None]]) -> list[TraceRequest]:
    return [
        TraceRequest(
            request_id=str(number),
            arrival_s=arrival_s,
            token_ids=tuple(range(3, 3 + prompt)),
            max_tokens=limit,
            true_output_tokens=output,
            priority=priority,
            abort_after_tokens=abort,
        )
        for number, (arrival_s, prompt, output, limit, priority, abort) in enumerate(drawn)
    ]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=WORKS,
    mode=st.sampled_from(["shadow", "on"]),
    gate=st.sampled_from([None, Gate(horizon_tokens=32)]),
    prefix_caching=st.booleans(),
)
def test_every_life_is_reported_whole(
    scripted: Script,
    drawn: list[Any],
    mode: str,
    gate: Gate | None,
    prefix_caching: bool,
) -> None:
    """Under memory pressure, with chunked prompts, aborts and prefix caching: facts equal the harness's accounts.

    The harness sits outside the scheduler and keeps its own books. Steps' times and loads agree with it as well.
    """
    script = scripted(indexes={str(number): float(number * 7 % 5) for number in range(14)}, mode=mode, gate=gate)
    engine = VllmVirtualTimeEngine(
        PROFILE, link=DirectLink(script), scheduler_class=SageScheduler, prefix_caching=prefix_caching
    )
    steps = list(_serve(engine, _works(drawn)))
    ended = {life.request_id: life for step in steps for life in step.finished}
    finished = script.finished()
    assert {request_id: _life(fact) for request_id, fact in finished.items()} == ended
    _check_order(script)
    total = Counter[str]()
    for snapshot in script.snapshots():
        total.update({name: getattr(snapshot, name) for name in SUMS})
    assert total["step_s"] == pytest.approx(sum(step.duration_s for step in steps))
    assert total["step_s"] == pytest.approx(
        PROFILE.base_s * total["steps"]
        + PROFILE.prefill_token_s * (total["prefill_tokens"] + total["decode_tokens"])
        + PROFILE.kv_token_s * total["kv_tokens_read"]
    )
    assert total["preemptions"] == sum(len(step.preempted) for step in steps)
    last = script.snapshots()[-1]
    assert (last.waiting, last.running, last.kv_blocks_used) == (0, 0, 0)
    assert (last.policy_errors, last.messages_dropped) == (0, 0)


def _serve(engine: VllmVirtualTimeEngine, works: list[TraceRequest]) -> Iterator[Step]:
    """Serve a workload; two empty steps first, to connect, and one last, as vLLM's engine core makes it."""
    engine.step()
    engine.step()
    pending = sorted(works, key=lambda work: work.arrival_s)[::-1]
    while pending or engine.unfinished:
        if not engine.unfinished:
            engine.advance_to(pending[-1].arrival_s)
        while pending and pending[-1].arrival_s <= engine.now_s:
            engine.submit(pending.pop())
        yield engine.step()
    yield engine.step()


def _check_order(script: Any) -> None:
    """Each request arrives once, then maybe gets its first token, then ends; preemptions lie between."""
    story: dict[str, str] = {}
    for fact in script.facts((Arrived, FirstToken, Preempted, Finished)):
        story[fact.request_id] = story.get(fact.request_id, "") + type(fact).__name__[:2]
    assert all(re.fullmatch("Ar(Pr)*(Fi(Pr)*)?Fi", tale) for tale in story.values()), story


def _life(fact: Finished) -> CompletedRequest:
    """A life as the harness would have put it: what never came before an abort counts as of its end."""
    return CompletedRequest(
        request_id=fact.request_id,
        arrival_s=fact.arrival_s,
        scheduled_s=fact.time_s if fact.scheduled_s is None else fact.scheduled_s,
        first_token_s=fact.time_s if fact.first_token_s is None else fact.first_token_s,
        finished_s=fact.time_s,
        prompt_tokens=fact.prompt_tokens,
        output_tokens=fact.output_tokens,
        reason=fact.reason,
        preemptions=fact.preemptions,
        recomputed_tokens=fact.recomputed_tokens,
        cached_prompt_tokens=fact.cached_prompt_tokens,
        itl_max_s=fact.itl_max_s,
        itl_p99_s=fact.itl_p99_s,
    )


class Overlap:
    """Drives vLLM's scheduler as its engine core does: a step is scheduled before the one before it has ended."""

    def __init__(self, script: Any) -> None:
        self.engine = VllmVirtualTimeEngine(PROFILE, link=DirectLink(script), scheduler_class=SageScheduler)
        self.scheduler = self.engine.scheduler
        self.flying: deque[tuple[SchedulerOutput, dict[str, list[int]]]] = deque()
        self.schedule()
        self.land()
        self.schedule()
        self.land()

    def add(
        self, request_id: str, tenant: str | None = None, *, stamp_s: float | None = None, **more: object
    ) -> Request:
        """Let a request arrive, stamped by the front end now unless another time is given."""
        sampling = SamplingParams(max_tokens=50, extra_args={"tenant": tenant})
        sampling.update_from_generation_config({}, END_OF_SEQUENCE_ID)
        request = Request(
            request_id, [5] * 20, sampling, None, arrival_time=self.engine.now_s if stamp_s is None else stamp_s, **more
        )
        self.scheduler.add_request(request)
        return request

    def schedule(self) -> SchedulerOutput:
        """Schedule a step and send it to the device."""
        output = self.scheduler.schedule()
        complete = [
            request_id
            for request_id in output.num_scheduled_tokens
            if not self.scheduler.requests[request_id].is_prefill_chunk
        ]
        self.flying.append((output, {request_id: [7] for request_id in complete}))
        return output

    def land(self, tokens: dict[str, list[int]] | None = None) -> None:
        """Let the oldest step end, with other tokens than 7 where given."""
        output, sampled = self.flying.popleft()
        sampled |= tokens or {}
        self.engine._now_s += 1.0
        ids = list(output.num_scheduled_tokens)
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: place for place, request_id in enumerate(ids)},
                sampled_token_ids=[sampled.get(request_id, []) for request_id in ids],
            ),
        )

    def drain(self) -> None:
        """Land what flies and make the last empty step."""
        while self.flying:
            self.land()
        self.schedule()
        self.land()


def test_a_token_in_flight_behind_the_end_of_an_answer_is_not_counted(scripted: Script) -> None:
    """With async scheduling the step after the last one is under way already when the answer ends."""
    script = scripted()
    overlap = Overlap(script)
    overlap.add("a")
    overlap.schedule()
    overlap.schedule()
    overlap.land()
    overlap.schedule()
    overlap.land({"a": [END_OF_SEQUENCE_ID]})
    overlap.drain()
    end = script.finished()["a"]
    assert (end.reason, end.output_tokens) == ("stop", 2)
    assert end.first_token_s == script.facts(FirstToken)[0].time_s


@pytest.mark.parametrize("ids", ["a", ["a"], None])
def test_an_abort_with_a_step_in_flight_ends_the_life_once(scripted: Script, ids: str | list[str] | None) -> None:
    """The requests are named by a string, by several, or means all; the token in flight comes too late."""
    script = scripted()
    overlap = Overlap(script)
    overlap.add("a")
    overlap.schedule()
    overlap.schedule()
    overlap.land()
    overlap.scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
    overlap.scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
    overlap.drain()
    end = script.finished()["a"]
    assert (end.reason, end.output_tokens) == ("abort", 1)
    assert script.snapshots()[-1].policy_errors == 0


def test_an_id_that_comes_again_before_the_next_step_is_another_life(scripted: Script) -> None:
    """VLLM still names the id among those that have ended when the step under way brings its tokens."""
    script = scripted()
    overlap = Overlap(script)
    overlap.add("b")
    overlap.schedule()
    overlap.add("a")
    overlap.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    overlap.add("a")
    assert "a" in overlap.scheduler.finished_req_ids
    overlap.land()
    overlap.schedule()
    overlap.land({"a": [END_OF_SEQUENCE_ID], "b": [END_OF_SEQUENCE_ID]})
    overlap.drain()
    ends = [(end.request_id, end.reason, end.output_tokens) for end in script.facts(Finished)]
    assert sorted(ends) == [("a", "abort", 0), ("a", "stop", 1), ("b", "stop", 2)]


def test_an_abort_of_the_last_request_is_told_at_once(scripted: Script) -> None:
    """VLLM need not call its scheduler again; the life's end and the idle engine are known all the same."""
    script = scripted()
    overlap = Overlap(script)
    for request_id in "ab":
        overlap.add(request_id)
    overlap.schedule()
    overlap.land()
    overlap.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    assert script.finished() == {}
    overlap.scheduler.finish_requests("b", RequestStatus.FINISHED_ABORTED)
    assert {end.reason for end in script.finished().values()} == {"abort"}
    assert script.finished().keys() == {"a", "b"}
    assert (script.snapshots()[-1].running, script.snapshots()[-1].kv_blocks_used) == (0, 0)


def test_a_token_in_flight_of_a_preempted_request_is_delivered_and_counted(scripted: Script) -> None:
    """Two requests outgrow the cache while a step is under way: one gives way, its token still arrives."""
    script = scripted(indexes={str(number): float(number) for number in range(6)})
    overlap = Overlap(script)
    requests = [overlap.add(str(number)) for number in range(6)]
    while any(not request.is_finished() for request in requests):
        overlap.schedule()
        if len(overlap.flying) == 2:
            overlap.land()
    overlap.drain()
    ends = script.finished()
    assert {(end.reason, end.output_tokens) for end in ends.values()} == {("length", 50)}
    preempted = script.facts(Preempted)
    assert preempted
    assert sum(end.preemptions for end in ends.values()) == len(preempted)
    assert sum(end.recomputed_tokens for end in ends.values()) == sum(fact.lost_tokens for fact in preempted)
    assert script.snapshots()[-1].policy_errors == 0


def test_overlapping_steps_add_up_to_the_time_that_passed(scripted: Script) -> None:
    """A step's time runs from the end of the one before it, not from when it was scheduled ahead."""
    script = scripted()
    overlap = Overlap(script)
    overlap.add("a")
    overlap.schedule()
    for _ in range(5):
        overlap.schedule()
        overlap.land()
    overlap.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    overlap.drain()
    assert sum(snapshot.step_s for snapshot in script.snapshots()) == pytest.approx(6.0)
    assert sum(snapshot.steps for snapshot in script.snapshots()) == 6


def test_a_session_with_streaming_input_is_one_life(scripted: Script) -> None:
    """Further chunks of input and a turn's end neither begin nor end a life; the session's end does."""
    script = scripted()
    overlap = Overlap(script)
    overlap.add("session", resumable=True)
    overlap.schedule()
    overlap.land({"session": [END_OF_SEQUENCE_ID]})
    assert script.finished() == {}
    overlap.add("session", resumable=True)
    overlap.schedule()
    overlap.land()
    overlap.schedule()
    overlap.land({"session": [END_OF_SEQUENCE_ID]})
    overlap.add("session", resumable=False)
    overlap.drain()
    assert [fact.request_id for fact in script.facts(Arrived)] == ["session"]
    end = script.finished()["session"]
    assert (end.output_tokens, end.reason) == (3, "stop")
    assert script.snapshots()[-1].policy_errors == 0


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_session_whose_input_ends_while_it_waits_for_more_ended_as_its_last_turn(
    scripted: Script, chunks: int
) -> None:
    """VLLM calls that an abort and stamps the session anew; its arrival stays that of its first chunk."""
    script = scripted()
    overlap = Overlap(script)
    began_s = overlap.engine.now_s
    for _ in range(chunks):
        overlap.add("session", resumable=True)
        overlap.schedule()
        overlap.land({"session": [END_OF_SEQUENCE_ID]})
        overlap.engine.advance_to(overlap.engine.now_s + 5.0)
    overlap.add("session", resumable=False)
    overlap.drain()
    end = script.finished()["session"]
    assert (end.reason, end.arrival_s, end.output_tokens) == ("stop", began_s, chunks)
    assert end.first_token_s is not None
    assert end.first_token_s >= began_s


def test_a_session_whose_client_goes_away_is_aborted(scripted: Script) -> None:
    """Between two turns as well as in one."""
    script = scripted()
    overlap = Overlap(script)
    for name in ("between", "within"):
        overlap.add(name, resumable=True)
        overlap.schedule()
        overlap.land({name: [END_OF_SEQUENCE_ID]})
    overlap.add("within", resumable=True)
    overlap.schedule()
    overlap.land()
    overlap.scheduler.finish_requests(["between", "within"], RequestStatus.FINISHED_ABORTED)
    overlap.drain()
    assert {name: end.reason for name, end in script.finished().items()} == {"between": "abort", "within": "abort"}


@pytest.mark.parametrize("step_s", [-600.0, 600.0])
def test_a_step_of_the_system_clock_changes_no_arrival_and_is_told(scripted: Script, step_s: float) -> None:
    """Before and after it, and of a front end whose stamp is from before it: in order, no time negative or absurd."""
    script = scripted()
    overlap = Overlap(script)
    clock = overlap.scheduler._sage._clock
    began_s, first = overlap.engine.now_s, overlap.add("before")
    overlap.schedule()
    overlap.land()
    on_its_way_s = overlap.engine.now_s
    clock._wall_s = lambda: overlap.engine.now_s + step_s
    overlap.engine.advance_to(overlap.engine.now_s + 3.0)
    on_its_way = overlap.add("on its way", stamp_s=on_its_way_s)
    after = overlap.add("after", stamp_s=overlap.engine.now_s + step_s - 0.5)
    sent_s = {"before": began_s, "on its way": on_its_way_s, "after": overlap.engine.now_s - 0.5}
    found = [overlap.scheduler._sage._tracker.arrival(request)[0] for request in (first, on_its_way, after)]
    assert found == pytest.approx([*sent_s.values()])
    for _ in range(3):
        overlap.schedule()
        overlap.land()
    overlap.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    overlap.drain()
    for name, end in script.finished().items():
        assert end.arrival_s == pytest.approx(sent_s[name])
        assert end.first_token_s is not None
        assert end.arrival_s <= end.scheduled_s <= end.first_token_s <= end.time_s
    last = script.snapshots()[-1]
    assert (last.clock_off_s, last.stamps_replaced, last.policy_errors) == (step_s, 0, 0)


def test_vllms_own_order_is_that_of_arrival_whatever_the_system_clock_says(scripted: Script) -> None:
    """When the plan is given up after the clock was put back, who came later does not go first."""
    script = scripted(indexes={str(number): float(-number) for number in range(9)})
    overlap = Overlap(script)
    for number in range(4):
        overlap.engine.advance_to(overlap.engine.now_s + 0.001)
        overlap.add(str(number))
    overlap.scheduler._sage._clock._wall_s = lambda: overlap.engine.now_s - 600.0
    for number in range(4, 9):
        overlap.engine.advance_to(overlap.engine.now_s + 0.001)
        overlap.add(str(number), stamp_s=overlap.engine.now_s - 600.0)
    for _ in range(2):
        overlap.schedule()
        overlap.land()
    assert overlap.scheduler._sage._control._held
    overlap.scheduler._sage._control.give_back()
    for requests in (overlap.scheduler.running, overlap.scheduler.waiting):
        names = [request.request_id for request in requests]
        assert names == sorted(names)
        assert len(names) > 1
    overlap.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    overlap.drain()


def test_a_pooling_request_passes_unreported(scripted: Script) -> None:
    """It generates nothing, so there is nothing to learn or to order."""
    script = scripted(gate=Gate(horizon_tokens=8))
    overlap = Overlap(script)
    overlap.scheduler.add_request(Request("pool", [5] * 8, None, PoolingParams()))
    overlap.add("a")
    assert list(overlap.schedule().num_scheduled_tokens) == ["pool", "a"]
    overlap.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    overlap.drain()
    assert set(script.finished()) == {"a"}
    assert script.snapshots()[-1].policy_errors == 0


def test_what_a_client_makes_long_is_short_on_its_way_and_its_table_is_applied(scripted: Script) -> None:
    """Id and tenant of any length, and with what cannot be encoded: cut for the controller, whole in vLLM."""
    whole = f"cmpl-{400_000 * 'x'}\ud800-0-1a2b3c4d"
    bounded = bounded_request_id(whole)
    script = scripted(indexes={bounded: 5.0, "a": 9.0})
    overlap = Overlap(script)
    overlap.add("a")
    request = overlap.add(whole, tenant=1_000_000 * "t")
    overlap.schedule()
    overlap.land()
    overlap.schedule()
    agent = overlap.scheduler._sage.agent
    assert agent._tables_applied == 2
    assert agent._ordering.tables_held == 2
    overlap.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    overlap.drain()
    assert request.request_id == whole
    assert script.finished().keys() == {"a", bounded}
    (arrived,) = [fact for fact in script.facts(Arrived) if fact.request_id == bounded]
    assert len(arrived.tenant) == 256
    assert max(len(encode(message)) for message in script.heard) < 4000
    last = script.snapshots()[-1]
    assert (last.names_cut, last.policy_errors, last.messages_dropped) == (2, 0, 0)


@pytest.mark.parametrize("priority", [2**64 - 1, 2**63, 2**63 - 1, -(2**63)])
def test_a_class_from_a_header_crosses_the_border(priority: int) -> None:
    """VLLM bounds the body's ``priority``, and takes what fits its own frames from the header."""
    request = Request("a", [3, 4], SamplingParams(max_tokens=3), None, priority=priority)
    facts = Facts(batch=1, facts=(arrived(request, 1.0),), oldest=1)
    assert decode_engine_message(encode(facts)) == facts
    assert facts.facts[0].priority == min(priority, 2**63 - 1)
