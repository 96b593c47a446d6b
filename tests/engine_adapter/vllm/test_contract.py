"""What the plugin leans on in vLLM: its names, and its scheduler's behaviours one by one, without the plugin."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from typing import Any

import pytest
import vllm
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, PriorityRequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import contract
from engine_adapter.vllm.releases import PassedBy, SchedulerNames
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler

pytestmark = pytest.mark.vllm

PROFILE = Profile(
    name="six-blocks",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=96,
    block_size_tokens=16,
    max_num_seqs=4,
    token_budget=64,
    max_model_len_tokens=96,
)


def stock(profile: Profile = PROFILE) -> VllmVirtualTimeEngine:
    """The scheduler as vLLM made it."""
    return VllmVirtualTimeEngine(profile, link=NoLink(), scheduler_class=AsyncScheduler)


def submit(engine: VllmVirtualTimeEngine, *request_ids: str, prompt_tokens: int = 8) -> None:
    """Let requests of 40 output tokens arrive."""
    for request_id in request_ids:
        engine.submit(
            TraceRequest(
                request_id=request_id,
                arrival_s=engine.now_s,
                token_ids=tuple(range(3, 3 + prompt_tokens)),
                max_tokens=40,
                true_output_tokens=40,
            )
        )


def ids(requests: object) -> list[str]:
    """Request ids in order."""
    return [request.request_id for request in requests]  # type: ignore[attr-defined]


def test_the_version_under_test_is_served() -> None:
    """The installed release, or the one whose files were put before it."""
    assert vllm.__version__.startswith(os.environ.get("SAGESCHED_VLLM_EXPECTED", "0.32"))
    assert contract.refusal(vllm.__version__) is None


def test_every_name_is_there() -> None:
    """No name, parameter or attribute is missing, and none of ours is taken."""
    assert contract.check() == []


def test_a_missing_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a name gone, a parameter renamed, an attribute dropped, one of ours taken."""
    monkeypatch.delattr("vllm.v1.core.sched.request_queue.create_request_queue")
    monkeypatch.setattr(AsyncScheduler, "schedule", lambda this: this)
    monkeypatch.setattr(AsyncScheduler, "_sage", None, raising=False)
    monkeypatch.setitem(contract.ATTRIBUTES, ("vllm.v1.request", "Request"), ("tokens_to_come",))
    assert contract.check() == [
        "vllm.v1.core.sched.request_queue has no create_request_queue",
        "vllm.v1.core.sched.async_scheduler.AsyncScheduler.schedule takes ('this',), expected ('self',) first",
        "vllm.v1.core.sched.request_queue has no function create_request_queue",
        "vllm.v1.request.Request has no tokens_to_come",
        "AsyncScheduler has a _sage of its own",
    ]


def test_only_an_older_release_may_lack_what_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release as old as the name's, or newer, must have it; a release that is too old is refused whatever it has."""
    monkeypatch.setitem(contract.ATTRIBUTES, ("vllm.v1.request", "Request"), ("tokens_to_come",))
    monkeypatch.setitem(contract.LATER, "tokens_to_come", ((0, 90), None))
    assert contract.check() == []
    monkeypatch.setitem(contract.LATER, "tokens_to_come", ((0, 26), None))
    assert contract.check() == ["vllm.v1.request.Request has no tokens_to_come"]
    monkeypatch.setattr("vllm.__version__", "0.25.1")
    assert contract.check() == ["the plugin serves 0.26 to 0.33"]


def test_the_plugin_overrides_only_what_the_contract_names() -> None:
    """A method that the contract does not list cannot shadow one of vLLM's."""
    listed = {name.split(".")[1] for module, name in contract.PARAMETERS if name.startswith("AsyncScheduler.")}
    defined = {name for name, value in vars(SageScheduler).items() if inspect.isfunction(value)}
    assert defined - {"__init__"} - set(contract.OURS) == listed


def test_waiting_is_a_deque_served_from_its_head_and_may_be_replaced_between_steps() -> None:
    """Behaviours 1, 5 and 6."""
    engine = stock(replace(PROFILE, max_num_seqs=1))
    submit(engine, "a", "b", "c")
    engine.step()
    scheduler = engine.scheduler
    assert type(scheduler.waiting) is FCFSRequestQueue
    assert ids(scheduler.waiting) == ["b", "c"]
    scheduler.waiting = FCFSRequestQueue(reversed(scheduler.waiting))
    SchedulerNames.of(scheduler).limit_active(scheduler, 2)
    scheduler.max_num_running_reqs = 2
    engine.step()
    assert ids(scheduler.running) == ["a", "c"]


def test_the_victim_is_the_last_of_running_and_goes_to_the_head_of_waiting() -> None:
    """Behaviours 2, 3 and 6: reordering running chooses the victim."""
    engine = stock(replace(PROFILE, max_num_seqs=2))
    submit(engine, "a", "b", "c", prompt_tokens=40)
    engine.step()
    scheduler = engine.scheduler
    scheduler.running.reverse()
    while not (step := engine.step()).preempted:
        assert ids(scheduler.running) == ["b", "a"]
    assert step.preempted == ("a",)
    assert ids(scheduler.waiting) == ["a", "c"]
    assert scheduler.requests["a"].num_computed_tokens == 0
    assert scheduler.requests["a"].status == RequestStatus.PREEMPTED


def test_admission_stops_at_max_num_active_reqs_as_it_stands_before_each_step() -> None:
    """Behaviour 4; a limit that is reached admits nobody."""
    engine = stock()
    submit(engine, "a", "b", "c", "d")
    scheduler = engine.scheduler
    running = []
    for limit in (2, 2, 3, 3):
        SchedulerNames.of(scheduler).limit_active(scheduler, limit)
        running.append(engine.step().running)
    assert running == [2, 2, 3, 3]


def test_the_policy_may_change_with_requests_in_the_queue() -> None:
    """Behaviour 5: a server started with priority serves our deque, then its own heap again."""
    engine = VllmVirtualTimeEngine(
        replace(PROFILE, max_num_seqs=1), link=NoLink(), scheduler_class=AsyncScheduler, scheduling="priority"
    )
    submit(engine, "a", "b", "c")
    scheduler = engine.scheduler
    assert type(scheduler.waiting) is PriorityRequestQueue
    scheduler.policy = SchedulingPolicy.FCFS
    scheduler.waiting = FCFSRequestQueue(sorted(scheduler.waiting, reverse=True))
    engine.step()
    assert ids(scheduler.running) == ["c"]
    heap = PriorityRequestQueue()
    for request in scheduler.waiting:
        heap.add_request(request)
    scheduler.policy = SchedulingPolicy.PRIORITY
    scheduler.waiting = heap
    lives = []
    while engine.unfinished:
        lives += engine.step().finished
    assert [life.request_id for life in lives] == ["c", "a", "b"]


def test_ended_requests_are_returned_or_finished() -> None:
    """Behaviour 7."""
    engine = stock()
    submit(engine, "a", "b")
    engine.step()
    scheduler = engine.scheduler
    request = scheduler.requests["a"]
    assert ids(scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)) == ["a"]
    assert scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED) == []
    assert ids(scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)) == ["b"]
    assert request.is_finished()
    reason = request.get_finished_reason()
    assert reason is not None
    assert reason.name == "ABORT"


def test_a_steps_computed_tokens_are_those_before_it() -> None:
    """Behaviour 8, for a new request and for a running one."""
    scheduler = stock().scheduler
    scheduler.add_request(Request("a", [5] * 70, SamplingParams(max_tokens=4), None))
    first = scheduler.schedule()
    assert [(new.req_id, new.num_computed_tokens) for new in first.scheduled_new_reqs] == [("a", 0)]
    assert first.num_scheduled_tokens == {"a": 64}
    second = scheduler.schedule()
    assert second.scheduled_cached_reqs.num_computed_tokens == [64]
    assert second.total_num_scheduled_tokens == 6


def test_the_null_block_is_never_free() -> None:
    """Behaviour 9: of the pool's blocks one is not for requests, and blocks in use are not free."""
    engine = stock()
    pool = engine.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1 == PROFILE.kv_blocks
    submit(engine, "a", prompt_tokens=20)
    engine.step()
    assert pool.get_num_free_blocks() == PROFILE.kv_blocks - 2


def test_budget_and_chunk_are_read_in_every_step() -> None:
    """Behaviour 11: both hold from the next step on, in both directions."""
    engine = stock()
    submit(engine, "a", "b", prompt_tokens=40)
    scheduler = engine.scheduler
    scheduler.max_num_scheduled_tokens = 24
    scheduler.scheduler_config.long_prefill_token_threshold = 16
    assert engine.step().scheduled_tokens == {"a": 16, "b": 8}
    scheduler.max_num_scheduled_tokens = 64
    scheduler.scheduler_config.long_prefill_token_threshold = 0
    assert engine.step().scheduled_tokens == {"a": 24, "b": 32}


def test_a_request_that_loads_its_kv_leaves_the_queue_uncounted() -> None:
    """Behaviours 12 and 13: with a limit of one, two load at once; both stand among the deferred."""
    engine = stock()
    submit(engine, "a", "b")
    scheduler = engine.scheduler
    SchedulerNames.of(scheduler).limit_active(scheduler, 1)
    scheduler.connector = _Loads()
    engine.step()
    deferred = PassedBy(scheduler).gather()
    holding = SchedulerNames.of(scheduler).kv_holding(scheduler)
    assert (ids(scheduler.waiting), ids(holding), scheduler.running) == ([], ["a", "b"], [])
    assert sorted(ids(deferred)) == ["a", "b"]
    assert {request.status for request in holding} == {RequestStatus.WAITING_FOR_REMOTE_KVS}


class _Loads:
    """A connector that has every prompt but its last token elsewhere, and never ends loading it."""

    def get_num_new_matched_tokens(self, request: Request, computed_tokens: int) -> tuple[int, bool]:
        return request.num_tokens - 1 - computed_tokens, True

    def get_loaded_kv_cache_group_ids(self, _request: Request) -> tuple[int, ...]:
        return ()

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_more: None


def test_a_request_that_is_passed_by_returns_to_the_head() -> None:
    """Behaviours 12 and 13: one that waits for its grammar lets the next start, and stays first."""
    engine = stock()
    submit(engine, "a", "b")
    scheduler = engine.scheduler
    request = scheduler.requests["a"]
    request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    passed_by = PassedBy(scheduler)
    engine.step()
    assert ids(passed_by.gather()) == ["a"]
    assert (ids(scheduler.waiting), ids(scheduler.running)) == (["a"], ["b"])
    request.status = RequestStatus.WAITING
    engine.step()
    assert (ids(scheduler.running), ids(passed_by.gather())) == (["b", "a"], [])


def test_finished_requests_may_stay_among_the_requests() -> None:
    """Behaviour 15: while their blocks are sent elsewhere; they are in no queue."""
    engine = stock()
    submit(engine, "a")
    engine.step()
    scheduler = engine.scheduler
    scheduler._connector_finished = lambda _request: (True, None)
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    assert ids(scheduler.requests.values()) == ["a"]
    assert not scheduler.waiting
    assert not scheduler.running
